"""Phrases, commands and listings of which `zh_articles` makes articles; all are made up."""

from __future__ import annotations

TOOLS = (
    "`rsync`",
    "Nginx",
    "systemd",
    "`journalctl`",
    "Docker",
    "Vim",
    "GNU Parallel",
    "Ansible",
    "Git",
    "PostgreSQL",
    "树莓派",
    "内核模块",
    "LVM",
    "`tmux`",
    "WireGuard",
    "容器镜像",
    "Btrfs 文件系统",
    "Kubernetes",
)
SENTENCES = (
    "{a} 是一个用来{b}的工具，它在大多数发行版的软件仓库里都能找到。",
    "如果你还没有安装 {a}，可以先用包管理器把它装上，然后再继续往下读。",
    "默认情况下，{a} 会把日志写到 `/var/log` 目录中，这对{b}很有帮助。",
    "在早先的文章里，我们介绍过怎样用 {a} 来{b}，今天我们来看看更进一步的用法。",
    "需要注意的是，{a} 的 {n}.{m} 版本修改了这个选项的含义，旧的脚本可能因此出错。",
    "当你第一次运行 {a} 时，它会询问你是否要{b}；直接按回车键就可以了。",
    "我在一台有 {n} GB 内存的机器上测试了这个过程，整个过程大约花了 {m} 分钟。",
    "为什么要用 {a} 呢？因为它不需要图形界面，而且占用的资源非常少！",
    "“**不要在生产环境里这样做**”，文档中的这句话值得再说一遍。",
    "{a} 的作者说：“我们的目标是让每个人都能{b}。”这个目标还没有完全实现。",
    "更多细节请参考[官方手册][{n}]，其中有一章专门讲述如何{b}。",
    "（如果端口 {port} 已经被占用，请换一个端口，例如 {port2}。）",
    "把光标移到第 {n} 行，按 `Ctrl+{k}`，就能看到 {a} 给出的提示。",
    "<ruby>守护进程<rt>daemon</rt></ruby>启动之后，{a} 就会在后台等待新的连接。",
    "这篇文章发表于 20{n:02d} 年 {m} 月 {n} 日，因此其中的一些链接可能已经失效了。",
    "从 {port} 到 {port2} 的端口都可以使用，但是小于 1024 的端口需要 root 权限。",
    "接下来,我们需要修改 {a} 的配置文件,把其中的地址换成你自己的地址.",
    "有些人喜欢 {a}，有些人不喜欢；但无论如何，学会{b}总是值得的。",
)
OPENERS = (
    "在编辑 {a} 的配置之前",
    "如果你只想{b}",
    "和大多数命令行工具一样",
    "对于刚刚接触 {a} 的读者来说",
    "等到服务重新启动以后",
    "根据我这几年的经验",
    "虽然 {a} 的文档写得很详细",
    "假如上面的命令报错",
    "从第 {m} 步开始",
    "只要网络连接正常",
    "为了更好地{b}",
    "与 {a} 不同",
    "在我写这篇文章的时候",
    "由于权限的限制",
    "经过一番搜索之后",
    "当磁盘空间不够用时",
    "按照惯例",
    "不管你使用哪个发行版",
    "如前所述",
    "出于安全方面的考虑",
)
CLOSERS = (
    "最好先给原来的文件做一个备份",
    "都可以借助 {a} 在几分钟之内完成",
    "我们必须以管理员的身份执行这条命令",
    "程序会在当前目录下生成一个很小的索引",
    "你会发现{b}并没有想象中那么难",
    "它的输出比以前的版本更容易阅读",
    "请检查防火墙是否放行了相应的端口",
    "每个用户都有一份自己的设置",
    "新的参数要到下一次登录时才会生效",
    "系统会自动选择离你最近的镜像站点",
    "剩下的工作就是把结果发送给同事",
    "我更愿意用 {a} 来{b}",
    "这个缺陷已经在上游的代码里修复了",
    "两者之间的差别只有在负载很高时才看得出来",
    "初学者常常会忘记最后的那个斜杠",
    "可以用正则表达式来筛选需要的行",
    "管理员应当定期查看这些记录",
    "其余的选项保持默认值就好",
    "我们把它留作练习",
    "整个过程不需要重新编译内核",
    "这样一来别人就无法读取其中的密码了",
    "下面的表格列出了所有可用的参数",
    "屏幕的右上角会出现一个小小的图标",
    "第二块硬盘的分区表必须事先建立好",
    "脚本里的每一个变量都应该加上引号",
    "缓存的大小取决于可用的物理内存",
    "旧的配置在升级之后会被自动转换",
    "没有人愿意在半夜里手工重启服务器",
    "社区的邮件列表是提问的好地方",
    "这些数字只代表我自己的测试结果",
    "两个进程之间通过套接字来传递消息",
    "浏览器会提示证书不受信任",
    "被删除的条目仍然保留在回收站中",
    "它的许可证允许商业用途",
    "图形界面并不是必需的",
    "你可以随时按下退出键来中断操作",
    "时区设置错误会使日志难以对照",
    "任务会在每天凌晨三点自动执行",
    "请把示例里的用户名换成你自己的",
    "压缩比越高，花费的时间就越长",
    "多余的空格会被解释器忽略",
    "编辑器会高亮显示匹配的括号",
    "远程的分支在合并之后就可以删掉",
    "它支持十几种常见的音频格式",
    "所有的请求都会先经过反向代理",
    "这个目录默认是隐藏的",
    "校验和不一致说明下载的文件已经损坏",
    "我们将在下一篇文章中详细讨论它",
    "字体的渲染效果也有了明显的改善",
    "普通用户没有权限监听低位端口",
)
PURPOSES = (
    "同步两台主机上的文件",
    "查看系统启动时的日志",
    "限制每个用户的磁盘用量",
    "在终端里管理多个会话",
    "备份数据库",
    "加密两个网络之间的流量",
    "批量修改配置文件",
    "监视网络接口",
    "恢复误删的分区",
    "编译自己的内核",
    "找出占用端口的进程",
    "转换视频的格式",
    "部署一个静态网站",
    "测试磁盘的读写速度",
    "给旧的笔记本电脑安装系统",
    "编写可移植的脚本",
)
TITLES = (
    "怎样用 {a} 来{b}",
    "{a} 入门：{n} 个实用的例子",
    "为什么我们从别的工具换到了 {a}",
    "在 Ubuntu {n}.04 上{b}",
    "{a} 与老式工具的比较",
    "给新手的 {a} 教程（{m}）",
    "{b}的 {m} 种方法",
)
COMMANDS = (
    "$ sudo apt-get install -y {p}",
    "# systemctl restart {p}.service",
    "sudo vi /etc/{p}/{p}.conf",
    "$ {p} --verbose --output=/tmp/{p}.log | grep -v '^#' > out.txt",
    "cd ~/src/{p} && make && sudo make install",
    "{p} -a -n {port} user@192.168.1.{n}:/srv/{p}/",
    'echo "Hello, $LOGNAME"',
    "docker run -it --rm {p}:latest",
)
PROGRAMS = ("nginx", "rsync", "sshd", "htop", "ffmpeg", "mariadb", "redis", "lsyncd", "tcpdump")
OUTPUTS = (
    """Filesystem      Size  Used Avail Use% Mounted on
/dev/sda{m}        {n}G   43G   49G  48% /
tmpfs           799M  1.7M  797M   1% /run
tmpfs           799M  1.7M  797M   1% /run""",
    """mysql> SELECT VERSION(), DATABASE();

+-------------------------+------------+
| VERSION()               | DATABASE() |
+-------------------------+------------+
| 5.5.{n}-0ubuntu0         | NULL       |
+-------------------------+------------+
1 row in set (0.06 sec)""",
    """Reading package lists... Done
Building dependency tree
Reading state information... Done
The following NEW packages will be installed:
  {p} {p}-common

You can turn off this feature to get a quicker startup with -A

0 upgraded, 2 newly installed, 0 to remove and {n} not upgraded.""",
    """#!/bin/bash
# The Shebang

if [ $# -ne 2 ]
# If two inputs are not received from the standard input

then
    echo "Usage: $0 x y"
    exit 1
fi

# 把两个数加起来
echo "Sum of $1 and $2 is `expr $1 + $2`\"""",
    """NAME   MAJ:MIN RM   SIZE RO TYPE MOUNTPOINT
sda      8:0    0 465.8G  0 disk
├─sda1   8:1    0    {n}G  0 part
└─sda8   8:8    0 198.5G  0 part /media/13f35f59""",
    """{{
  "name": "{p}",
  "listen": {port},
  "text": "lorem ipsum dolor sit amet",
  "key": "c2hhMjU2OmFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6QUJDREVGR0hJSktMTU5PUFFS"
}}""",
    """<VirtualHost *:{port}>
        # The ServerName directive sets the name that the server
        # uses to identify itself. You can add more of them.

        ServerName www.{p}.example
        DocumentRoot /var/www/{p}
</VirtualHost>""",
    """def main(argv):
    for name in argv:
        print(f'{{name}}: ok')


if __name__ == '__main__':
    main(sys.argv[1:])""",
    """{n}  2017-08-16 15:30:15 yum install -y {p}
{m}  2017-08-16 15:30:15 service {p} start
{n}  2017-08-16 15:30:15 sysdig -c topprocs_cpu""",
    """64 bytes from 10.0.0.{n}: icmp_seq=1 ttl=64 time=0.0{m} ms
64 bytes from 10.0.0.{n}: icmp_seq=2 ttl=64 time=0.0{n} ms

--- 10.0.0.{n} ping statistics ---
2 packets transmitted, 2 received, 0% packet loss""",
    """┌─ {p} ────────┐
│ [x] eth0     │
└──────────────┘""",
)
CELLS = (
    ("`-{k}`", "显示所有的条目"),
    ("`--{p}`", "指定 {p} 的路径，默认为 `/etc/{p}`"),
    ("G", "移动至文件末尾"),
    ("0x2000{port}", "32 位寄存器"),
    ("{n}.{m}", "是"),
    ("[{p}][{m}]", "服务端。客户端见下文。"),
    (":q!", "退出，不保存"),
)
CREDITS = (
    "via: https://example.com/20{n}/{m}/{p}-tutorial/",
    "作者：[{name}][a]",
    "选题：[editor{n}](https://github.com/editor{n})",
    "译者：[译者ID](https://github.com/译者ID)",
    "校对：[校对者ID](https://github.com/校对者ID)",
)
NAMES = ("Jane Roe", "nixExample", "M. Sample", "Ann Author")
BARE = (
    "smtpd_tls_cert_file=/etc/ssl/certs/{p}.pem\nsmtpd_tls_key_file=/etc/ssl/private/{p}.key",
    "Device         Start        End   Sectors   Size Type\n"
    "/dev/sda1        2048       4095      2048     {m}M BIOS boot\n"
    "/dev/sda2        4096  100667391 100663296    {n}G Linux RAID",
    "$ {p} -a -n {port} /srv/{p}/ /mnt/backup",
    "vi /etc/{p}/conf.d/{p}_{port}.conf",
    "192.168.{m}.{n}",
    "if (x == {n}) {{ return f(x, {m}); }}",
    "sed -i 's/^#Port 22/Port {port}/' /etc/ssh/sshd_config",
)
