"""E-mail addresses and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from bc2.data.prep.text.personal.clues import Clues

_LOCAL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._%+-"

#: The most characters of the part before the ``@`` (RFC 5321).
_MOST_LOCAL = 64

_HOST = re.compile(
    r"(?<=@)((?>(?:[A-Za-z0-9]++(?:-++[A-Za-z0-9]++)*+\.){1,9}([A-Za-z]{2,24})))"
    r"(?![A-Za-z0-9@]|_\w|-[0-9]|:(?:[\w.~-]{0,64}/|[\w.-]{0,64}\.git\b))",
    re.ASCII,
)

_URL_USER = re.compile(r"://[^\s/?@]{0,24}\Z")

#: Hosts of nobody. RFC 2606 and RFC 6761 reserve most of them.
_NOBODY = re.compile(r"(?:^|\.)(?:test|invalid|localhost|local|domain\.com)\Z")
_RESERVED = re.compile(r"(?:^|\.)(?:example|example\.(?:com|net|org))\Z")

#: What stands for a name at a reserved host.
_PLACEHOLDERS_TEXT = """
    user username name you your yourname youremail me someone somebody anyone person admin
    root test info mail email foo bar baz
"""
_PLACEHOLDERS = frozenset(_PLACEHOLDERS_TEXT.split())

#: Top-level domains of more than two letters that are in common use. Others are seldom hosts, and
#: often code: ``self@layer.weight``.
_DOMAINS_TEXT = """
    com net org edu gov mil int info biz name pro aero coop museum mobi asia cat jobs tel
    travel post arpa example app dev xyz top online site shop store club vip tech cloud email
    blog news work live life world today space website icu win bid loan men wang ltd group ink
    fun team love link click design digital agency company systems solutions services network
    center global media studio academy education university school health care finance page
    wiki games chat plus berlin london paris tokyo nyc beer photo photos software engineering
    science foundation community host hosting domains support zone tools expert guru ninja
    rocks social
"""
_DOMAINS = frozenset(_DOMAINS_TEXT.split())

#: Ends of file names, which look like domains of countries: ``x@y.py``.
_FILES = frozenset(["py", "md", "ts", "sh", "js"])

#: A domain to which the next word was glued, as where tags were taken out: ``debian.orgRoland``.
_GLUED = re.compile(r"(?:com|net|org|edu|gov)(?=[A-Z][a-z])")

#: Headers of mails whose values look like addresses, and such a value in the path of a URL.
_IDS = re.compile(r"(?:message-id|references|in-reply-to|content-id)[ \t]*:", re.IGNORECASE)
_IN_PATH = re.compile(r"://[^\s?@]{0,80}/\Z")
_ID_DIGITS = 8


def emails(text: str) -> Iterator[tuple[int, int]]:
    """Places of e-mail addresses."""
    wide = text.replace("＠", "@") if "＠" in text else text
    at = wide.find("@")
    done = 0
    while at >= 0:
        match = _HOST.match(wide, at + 1)
        if match:
            start = _local_start(wide, at, done)
            glued = _GLUED.match(match[2])
            domain = glued.group() if glued else match[2]
            if start < at and not _is_other(wide[start:at], match[1], domain):
                done = match.start(2) + len(domain)
                if not _is_in_other(wide, start, at):
                    yield start, done
        at = wide.find("@", at + 1)


def _local_start(text: str, at: int, done: int) -> int:
    """Where the part before an ``@`` begins; `at` if there is none."""
    before = text[max(done, at - _MOST_LOCAL - 1) : at]
    local = before[len(before.rstrip(_LOCAL)) :].lstrip(".-+%")
    return at - len(local) if len(local) <= _MOST_LOCAL else at


def _is_other(local: str, host: str, domain: str) -> bool:
    """Whether what looks like an address is a file, code or nobody's."""
    host, domain = host.lower(), domain.lower()
    if (len(domain) > 2 and domain not in _DOMAINS) or domain in _FILES or _NOBODY.search(host):
        return True
    return _RESERVED.search(host) is not None and local.lower() in _PLACEHOLDERS


def _is_in_other(text: str, start: int, at: int) -> bool:
    """Whether what looks like an address is the user of a URL, or the number of a message."""
    before = text[max(0, start - 100) : start]
    if before[-1:] == "@" or _URL_USER.search(before):
        return True
    if sum(map(str.isdigit, text[start:at])) >= _ID_DIGITS and _IN_PATH.search(before):
        return True
    line = text.rfind("\n", max(0, start - 400), start) + 1
    return _IDS.match(text, line) is not None and start - line < 400


_CLUES = Clues(
    yes="""
    ip ips ipv address addresses addr host hosts hostname server servers ping bound connecting
    scanning rsync scp request ssh connect connected connection abuse login logged remote peer
    gateway dns nameserver nameservers proxy deny allow blocked banned attack attacker
    traceroute curl telnet http https ftp tcp udp originating received router routers route
    inet netmask iptables dig wan vpn subnet endpoint forwarded visitor whois unreachable 地址
    主机 服务器 登录 登陆 来自 访问 攻击 网关 域名 代理 白名单 黑名单 发起 连接 端口 路由 节点
    封禁 来源 远程 公网 外网 扫描 网友
""",
    no="""
    version versions v ver rev revision release releases released build section chapter clause
    oid player firmware driver drivers kernel plugin changelog assembly upgrade upgraded
    upgrading update updated chrome chromium firefox safari opera webkit edge android ios
    since fixed changes beta patch pkg package lib dotnet net sdk api requires supported
    minimum required bios flash java mono image air figure table edition tag 版本 版 升级 更新
    固件 驱动 内核 补丁 插件 第 章 节 条 发布 浏览器 软件 升到 降到 程序集 编译 安装包
""",
)

#: All but the first number of an address: dots are rarer than digits.
_IPV4_REST = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\w|-[A-Za-z]|\.\d)", re.ASCII)
_IPV4_FIRST = re.compile(r"(?<![\w.-])\d{1,3}\Z", re.ASCII)

#: The second group and its colons; addresses in use begin with 2 or 3.
_IPV6_SECOND = re.compile(r":(?<=[23][0-9a-fA-F]{3}:)[0-9a-fA-F]{0,4}:")
_IPV6 = re.compile(r"(?<![\w:.])[0-9a-fA-F:]{7,39}+(?![\w:])", re.ASCII)

#: What before or after a number shows that it counts versions.
_VERSION_BEFORE = re.compile(
    r"(?:[A-Za-z0-9_)](?<!//)/|[=<>~!]=\s?\"?|~>\s?|\^|(?:^|\n)(?:#+|[*-]) ?\[?)\Z"
)
_VERSION_AFTER = re.compile(
    r"\.in-addr| ?(?:正式)?(?:版|发布)| ?(?:更新|修复|升|及?以[上下])"
    r"| (?:release|beta|fixes|was released)"
    r"|\.(?:tar|zip|exe|dll|jar|whl)|_|\] - |\n[-=~]{3}|\]?:? ?\(\d{4}-"
)
_LINE_START = re.compile(r"(?:^|\n)[\s#]{0,12}\Z")
_SECTION_AFTER = re.compile(r"\.?[\s\u00a0]{1,9}+(?![\s\u00a0-]|\d|[\w.-]+\.[a-z])\D")
_ADDRESS_AFTER = re.compile(r"\]?:\d{2,5}\b|\]? port \d|\]? - \S+ \[| ?登[录陆]")
_NAME_BEFORE = re.compile(r"[A-Za-z+\u4e00-\u9fff][\w.]{0,8} \Z")  # as of a program
_PREFIX_AFTER = re.compile(r"/\d{1,2}\b")
_ADDRESS_BEFORE = re.compile(
    r"(?:://|\[client |\b(?:root|admin|ubuntu|user)@|\d:\d\d(?:\.\d{1,6})?\]? )\Z"
)

#: Numbers above this are rare in versions, and so are first numbers from this.
_LARGE = 50
_FIRST = 20


def ips(text: str) -> Iterator[tuple[int, int]]:
    """Places of public IP addresses."""
    for match in _IPV4_REST.finditer(text):
        first = _IPV4_FIRST.search(text[max(0, match.start() - 4) : match.start()])
        if first is None:
            continue
        start = match.start() - len(first.group())
        if is_public(text[start : match.end()]) and _is_address(text, start, match.end()):
            yield start, match.end()
    for match in _IPV6_SECOND.finditer(text):
        whole = _IPV6.match(text, match.start() - 4)
        if whole and is_public(whole.group()):
            yield whole.span()


def _is_address(text: str, start: int, end: int) -> bool:
    """Whether four numbers are an address and no version: by what is around them, then by size."""
    before = text[max(0, start - 12) : start]
    small = all(int(octet) <= _LARGE for octet in text[start:end].split("."))
    if _ADDRESS_AFTER.match(text, end) or (not small and _PREFIX_AFTER.match(text, end)):
        return True
    if _VERSION_BEFORE.search(before) or _VERSION_AFTER.match(text, end):
        return False
    if small and _LINE_START.search(before) and _SECTION_AFTER.match(text, end):
        return False
    if _ADDRESS_BEFORE.search(before):
        return True
    clue = _CLUES.before(text, start, lines=1)
    if clue is not None:
        return clue
    octets = [int(octet) for octet in text[start:end].split(".")]
    large = sum(octet > _LARGE for octet in octets)
    doubtful = octets[0] < _FIRST or _NAME_BEFORE.search(before)
    return 0 not in octets and large >= (3 if doubtful else 2)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and not private, reserved or of a group."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast
