"""Chinese technical articles in Markdown, as translators and system administrators write them.

Every sentence and every listing is made up here; only the shapes are those of real articles: a
head of metadata, pictures, fences and indented code with blank lines, terminals, tables, nested
lists, credits and link definitions at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

_TOOLS = (
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
_SENTENCES = (
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
_OPENERS = (
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
_CLOSERS = (
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
_PURPOSES = (
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
_TITLES = (
    "怎样用 {a} 来{b}",
    "{a} 入门：{n} 个实用的例子",
    "为什么我们从别的工具换到了 {a}",
    "在 Ubuntu {n}.04 上{b}",
    "{a} 与老式工具的比较",
    "给新手的 {a} 教程（{m}）",
    "{b}的 {m} 种方法",
)
_COMMANDS = (
    "$ sudo apt-get install -y {p}",
    "# systemctl restart {p}.service",
    "sudo vi /etc/{p}/{p}.conf",
    "$ {p} --verbose --output=/tmp/{p}.log | grep -v '^#' > out.txt",
    "cd ~/src/{p} && make && sudo make install",
    "{p} -a -n {port} user@192.168.1.{n}:/srv/{p}/",
    'echo "Hello, $LOGNAME"',
    "docker run -it --rm {p}:latest",
)
_PROGRAMS = ("nginx", "rsync", "sshd", "htop", "ffmpeg", "mariadb", "redis", "lsyncd", "tcpdump")
_OUTPUTS = (
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
_CELLS = (
    ("`-{k}`", "显示所有的条目"),
    ("`--{p}`", "指定 {p} 的路径，默认为 `/etc/{p}`"),
    ("G", "移动至文件末尾"),
    ("0x2000{port}", "32 位寄存器"),
    ("{n}.{m}", "是"),
    ("[{p}][{m}]", "服务端。客户端见下文。"),
    (":q!", "退出，不保存"),
)
_CREDITS = (
    "via: https://example.com/20{n}/{m}/{p}-tutorial/",
    "作者：[{name}][a]",
    "选题：[editor{n}](https://github.com/editor{n})",
    "译者：[译者ID](https://github.com/译者ID)",
    "校对：[校对者ID](https://github.com/校对者ID)",
)
_NAMES = ("Jane Roe", "nixExample", "M. Sample", "Ann Author")


class Article(NamedTuple):
    """A text and what it is made of; every piece stands in the text as it is."""

    text: str
    sentences: list[str]
    """Sentences of prose."""
    constructs: list[str]
    """Listings, tables, pictures, headings, the footer."""


class _Writer:
    def __init__(self, seed: int, sentences: Sequence[str]):
        self.draw = random.Random(seed)
        self.given = [*sentences]
        self.draw.shuffle(self.given)
        self.said: set[str] = set()
        self.closers: list[str] = []
        self.blocks: list[str] = []
        self.sentences: list[str] = []
        self.constructs: list[str] = []

    def fill(self, template: str) -> str:
        draw = self.draw
        port = draw.randint(1024, 30000)
        return template.format(
            a=draw.choice(_TOOLS),
            b=draw.choice(_PURPOSES),
            p=draw.choice(_PROGRAMS),
            k=draw.choice("abcdefgh"),
            n=draw.randint(10, 64),
            m=draw.randint(1, 9),
            port=port,
            port2=port + draw.randint(1, 500),
            name=draw.choice(_NAMES),
        )

    def sentence(self) -> str:
        if self.given:
            said = self.given.pop()
        else:
            said = self.made_up()
            while said in self.said:
                said = self.made_up()
        self.said.add(said)
        self.sentences.append(said)
        return said

    def made_up(self) -> str:
        if self.draw.random() < 0.3:
            return self.fill(self.draw.choice(_SENTENCES))
        opener = self.fill(self.draw.choice(_OPENERS))
        if len(self.closers) < 2:
            self.closers = [*_CLOSERS]
            self.draw.shuffle(self.closers)
        first, then = self.fill(self.closers.pop()), self.fill(self.closers.pop())
        return f"{opener}，{first}；{then}。"

    def add(self, block: str, construct: bool = True) -> None:
        self.blocks.append(block)
        if construct:
            self.constructs.append(block)

    def text_of(self, count: int, between: str = "") -> str:
        return between.join(self.sentence() for _ in range(count))

    # -- parts ------------------------------------------------------------------------------

    def paragraph(self) -> None:
        self.add(self.text_of(self.draw.randint(1, 4)), construct=False)

    def listing(self) -> str:
        lines = [self.fill(self.draw.choice(_COMMANDS)) for _ in range(self.draw.randint(1, 3))]
        if self.draw.random() < 0.7:
            lines.append(self.fill(self.draw.choice(_OUTPUTS)))
        return "\n".join(lines)

    def fence(self) -> None:
        mark = self.draw.choice(("```", "```", "```bash", "~~~", "```\n"))
        closing = mark.split("\n")[0].rstrip("bash")
        self.announce(f"{mark}\n{self.listing()}\n{closing}")

    def indented(self) -> None:
        width = self.draw.choice(("    ", "    ", "     ", "\t"))
        blank = self.draw.choice(("", "    "))
        lines = [width + line if line else blank for line in self.listing().split("\n")]
        self.announce("\n".join(lines))

    def announce(self, code: str) -> None:
        """A sentence before code, sometimes without a blank line; sometimes text right after."""
        lead = self.draw.choice(("运行下面的命令：", "输出如下：", "**答**：", "### 例子", ""))
        tight = code[0] in "`~" and lead.endswith("：") and self.draw.random() < 0.3
        block = code
        if tight:
            block = f"{lead}\n{code}"
            if self.draw.random() < 0.5:
                block += "\n" + self.text_of(1)
        elif lead:
            self.blocks.append(lead)
        self.constructs.append(code)
        self.blocks.append(block)

    def picture(self) -> None:
        shape = self.draw.choice(
            (
                "![][{m}]",
                "![查看结果。图中是 {p} 的界面！][{m}]",
                "![{p}](https://example.com/wp-content/uploads/2014/06/{p}_001.png)",
                ' ![](https://example.com/{p}_(1).jpg "{p} 的界面。") ',
                "[![{p}](https://example.com/{p}.png)](https://example.com/{p}.html)",
                "<img src='https://example.com/{p}.png' alt='{p}' width=600 />",
                "[下载 {p}][{m}]",
            )
        )
        self.add(self.fill(shape))

    def heading(self) -> None:
        title = self.fill(self.draw.choice(_TITLES))
        shape = self.draw.choice(
            ("### {}", "### {} ###", "###{}###", "## {m}. {}", "**{}**", "{}\n---", "#### #{m}：{}")
        )
        self.add(shape.replace("{m}", str(self.draw.randint(1, 9))).replace("{}", title))

    def table(self) -> None:
        rows = [[self.fill(cell) for cell in self.draw.choice(_CELLS)] for _ in range(5)]
        shape = self.draw.choice(("gfm", "gfm", "open", "html", "wide"))
        if shape == "html":
            body = "\n".join(f"<tr><td>{a}</td>\n<td>{b}</td></tr>" for a, b in rows)
            return self.add(f"<table>\n<tr><th>选项</th><th>说明</th></tr>\n{body}\n</table>")
        if shape == "open":
            lines = ["选项 | 说明", ":--- | ---:", *(f"{a} | {b}" for a, b in rows)]
        elif shape == "wide":
            lines = ["| 选项     | 说明        |", "| -------- | ---------- |"]
            lines += [f"| {a:12} | {b:20} |" for a, b in rows]
        else:
            lines = ["| 选项 | 说明 |", "|---|---|", *(f"|{a}|{b}|" for a, b in rows)]
        return self.add("\n".join(lines))

    def steps(self) -> None:
        mark = self.draw.choice(("1. ", "* ", "- ", "  1. ", "*   ", "1、", "(1) "))
        items = []
        for at in range(self.draw.randint(2, 5)):
            number = mark.replace("1", str(at + 1))
            items.append(number + self.text_of(1))
            if mark == "1. " and self.draw.random() < 0.4:
                code = f"```\n{self.listing()}\n```".replace("\n", "\n   ")
                self.constructs.append(code)
                items.append(f"\n   {code}\n")
        self.blocks.append("\n".join(items))

    def quote(self) -> None:
        lines = ["> " + self.text_of(2)]
        if self.draw.random() < 0.5:
            listing = "\n".join("> " + line for line in self.listing().split("\n"))
            lines += [">", f"> ```\n{listing}\n> ```", ">", "> " + self.text_of(1)]
        self.blocks.append("\n".join(lines))

    def links(self) -> None:
        """A list of links, in which there is no sentence."""
        names = (self.fill("* [{a} 的文档][{m}]") for _ in range(self.draw.randint(3, 8)))
        self.add("\n".join(names))

    # -- ends -------------------------------------------------------------------------------

    def head(self) -> None:
        if self.draw.random() < 0.5:
            keys = ("collector: (editor)", "translator: (someone)", "reviewer: ( )", "url: ( )")
            self.add("\n".join(f"[#]: {key}" for key in keys))
        title = self.fill(self.draw.choice(_TITLES))
        underline = self.draw.choice(("======", "=" * 80, "======", "-" * 20))
        gap = self.draw.choice(("", "\n"))
        self.constructs.append(f"{title}\n{underline}")
        self.blocks.append(f"{title}\n{underline}\n{gap}{self.text_of(2)}")

    def foot(self) -> None:
        credits = [self.fill(line) for line in _CREDITS]
        if self.draw.random() < 0.3:
            credits[-2:] = [credits[-2] + " " + credits[-1]]
        lines = [credits[0], "", *credits[1:], ""]
        lines.append(
            "本文由 [LCTT](https://github.com/LCTT/TranslateProject) 原创编译，"
            "[Linux中国](https://linux.cn/) 荣誉推出"
        )
        if self.draw.random() < 0.85:
            lines[:0] = ["-" * 80, ""]
        if self.draw.random() < 0.25:
            lines[:0] = ["作者简介：", "", self.text_of(2), "", "------", ""]
        colon = self.draw.choice((": ", ":"))
        defined = [f"[a]{colon}https://example.com/author/{self.draw.randint(1, 99)}"]
        shape = "https://example.com/20{n}/{p}-{k}/{port}?itok=r{p}7 (Screenshot of {p}.)"
        defined += [
            f"[{at}]{colon}{self.fill(shape)}" for at in range(1, self.draw.choice((4, 12, 60)))
        ]
        tight = self.blocks[-1].endswith("```") and self.draw.random() < 0.5
        foot = "\n".join(lines) + "\n\n" + "\n".join(defined) + "\n"
        self.constructs += credits + defined
        if tight:
            self.blocks[-1] += "\n" + foot
        else:
            self.blocks.append(foot)


def article(seed: int, sentences: Sequence[str] = ()) -> Article:
    """An article.

    Args:
        sentences: sentences to use, before those that are made up.
    """
    writer = _Writer(seed, sentences)
    draw = writer.draw
    parts: list[Callable[[], None]] = [
        writer.fence, writer.indented, writer.picture, writer.heading, writer.table, writer.steps,
        writer.quote, writer.links, writer.paragraph,
    ]  # fmt: skip
    weights = [draw.random() for _ in parts]
    writer.head()
    for _ in range(draw.randint(6, 16)):
        writer.paragraph()
        draw.choices(parts, weights)[0]()
    writer.foot()
    separator = draw.choice(("\n\n", "\n\n", "\n\n\n"))
    return Article(separator.join(writer.blocks), writer.sentences, writer.constructs)
