"""Telephone numbers, as people write them.

The forms are those of North America and China, and every number with the code of its country.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bc2.data.prep.text.personal.clues import Clues
from bc2.data.prep.text.personal.numbers import Numbers, digits_of
from bc2.data.prep.text.personal.phone_plans import is_country_code, is_number, is_number_abroad

CLUES = Clues(
    yes="""
    tel telephone tele phone phones mobile mob cell cellphone call calls called calling dial
    fax sms whatsapp contact reach hotline helpline wechat voice landline ph pager mynumber
    hisnumber hernumber ournumber yournumber theirnumber 电话 手机 联系 致电 拨打 拨 热线 传真
    座机 来电 微信 短信 打给 打 客服 咨询 收件人 收货人 通话 本机 分机 总机 号码 手机号 电话号
    手机号码 电话号码 联系号码 微信号 新号 老号 短号 移动电话 固话 前台 物业 售后 售票 预约
    预约挂号 同号
""",
    no="""
    order orders id ids idcard idnumber idno isbn issn doi oclc ean upc lccn arxiv rfc cve
    issue bug serial sku item part p/n s/n model invoice ticket tracking ref reference version
    ver rev revision seed offset size bytes price total amount usd commit hash pid uid port
    timestamp epoch score scores lat lon latitude longitude range pages pp vol volume key
    token zip account acct qq max min limit count rows product catalog catalogue patent
    revenue population barcode matrix fib pixels error case lot batch clause
    dfars far cfr usc section statute 订单 单号 编号 流水 序列
    书号 刊号 标准 编码 条码 条形码 学号 工号 税号 型号 货号 批号 版本 时间戳 金额 人民币 价格
    单价 总计 合计 共计 大小 人口 文号 专利 发票 准字 账号 帐号 卡号 账户 帐户 运单 快递单
    工单 数组 坐标 合同 期 第 号 量 数 共 约 达 额 值 码 代码 证号 成交 票房 营收 收入 产值
    销售额 利润 资产 余额 市值 点击 浏览 粉丝 面积 电表 表号 户号 阅读 播放 保单 发票号码
    证号码 身份证号码 准考证号码 彩票号码 车牌号码 订单号码 证件号码 中奖号码 账户号码
""",
)

#: How near a word must be to speak for a number whose form says little.
_NEAR = 14

#: Units after a number that is an amount.
_UNIT = re.compile(
    r" ?(?:元|字节|次|人(?!民)|万|亿|条|个|美元|年|期|号(?!机|码)|手(?!机)|股|票|份|笔|吨|平方|平米"
    r"|公里|%|px|[kKMGT]?i?B\b|bytes\b|rows\b|ms\b|USD\b|dollars\b)"
)

_LABEL = re.compile(
    r"(?:(?<![A-Za-z])(?:tel|telephone|phone|mobile|mob|cell|cellphone|fax|ph)"
    r"(?:\.| ?(?:no\.?|number|#))?|电话|手机|联系方式|传真|热线|座机)(?:号码?)?"
    r"[\s:：.=\"'<>|]{0,4}\Z",
    re.IGNORECASE,
)

#: No number, product or word goes on before or after a telephone number; an extension may follow.
_FIRST = r"(?<![\w+])(?<!\w-)(?<!\d\.)(?<![\w)]\*)"
_LAST = r"(?!(?!x\d)\w|[.-]\d)"

_ABROAD = re.compile(
    r"(?<![\w+])(?<![\w)]\*)\(?(?:\+|(?<![.\-/])(?<!\d )00(?=[1-9])) ?\(?"
    r"[1-9](?:[ .()/-]{0,2}+\d){6,18}+",
    re.ASCII,
)
_NXX = r"[2-9]\d\d"
_NANP = re.compile(
    rf"{_FIRST}(?:1?{_NXX}{_NXX}\d{{4}}|(?:1(?:[ .-]| ?(?=\()))?+"
    rf"(?:\({_NXX}\)(?: ?- ?|[ .])?{_NXX}[ .-]?\d{{4}}|{_NXX}-{_NXX}\d{{4}}"
    rf"|{_NXX}(?: ?- ?|[ ./]){_NXX}(?: ?- ?|[ .])\d{{4}})){_LAST}",
    re.ASCII,
)
_MOBILE = re.compile(
    r"(?<!\d)(?<!\d[.-])(?<![\w)]\*)(?:\(?(?:86|0086)\)?[ -]?|0)?+"
    rf"(1[3-9](?:[ -]?\d){{9}}|1[3-9]\d\.\d{{4}}\.\d{{4}}){_LAST}",
    re.ASCII,
)
#: A clause of a regulation (252.227-7013): a full stop before a hyphen is rare in a telephone
#: number.
_CLAUSE = re.compile(r"\d{3}\.\d{3}-\d{4}")

#: Latitude and longitude in degrees and minutes, perhaps seconds, as in ISO 6709.
_COORDINATES = re.compile(r"\+(?:\d{4}-\d{5}|\d{6}-\d{7})")

_AREA = r"(?:10|2\d|[3-9]\d\d)"
_LANDLINE = re.compile(
    rf"{_FIRST}(?:\(?(?:86|0086)\)?[ -]?(\(0?{_AREA}\)|0?{_AREA})\)?"
    rf"|(\(0{_AREA}\))|(0{_AREA}))"
    rf"(?: ?[/-]{{1,2}} ?| )?([2-9]\d{{2,3}}[ -]?\d{{4}})(?:-\d{{1,5}})?{_LAST}",
    re.ASCII,
)
_SERVICE = re.compile(
    rf"{_FIRST}[48]00(?:-?\d{{3,4}}-\d{{3,4}}|\d-\d{{3}}-\d{{3}}"
    rf"| \d{{3}} \d{{4}}|[ -]?\d{{7}}){_LAST}",
    re.ASCII,
)
_ANY = re.compile(rf"{_FIRST}\(?\d(?:[ ()-]{{0,2}}+\d){{6,14}}+{_LAST}", re.ASCII)
_DAY = re.compile(r"(?:19|20)\d\d-\d")
_URL = re.compile(r"(?:://|www\.)\S{0,80}\Z|= ?\Z")
_BETWEEN = re.compile(r"[\s,;/、，；或和及]*(?:or|and)?\s*")
_AFTER_NUMBER = re.compile(r"(?<![-/:.\d])\d+ \Z")  # and no date
_IN_ROW = re.compile(r" \d\Z")
_CHINESE = re.compile("[\u4e00-\u9fff、。，；！？]")


class Found(NamedTuple):
    """What may be a telephone number: near[start:end] of its run of numbers."""

    start: int
    end: int
    sure: bool
    """Whether its form is enough, unless a word speaks against it; else one must speak for it."""


def phones(numbers: list[Numbers]) -> Iterator[tuple[int, int]]:
    """Places of telephone numbers; later ones may overlap earlier ones."""
    ends: dict[int, int] = {}
    for number in numbers:
        near: dict[int, bool | None] = {}
        for pattern, judge in _FORMS:
            for match in number.matches(pattern):
                found = None if match.start() + number.offset in ends else judge(match)
                if found is not None and _speaks(number, found, near, ends):
                    start, end = number.offset + found.start, number.offset + found.end
                    ends[start] = end
                    yield start, end


def _speaks(
    number: Numbers, found: Found, near: dict[int, bool | None], ends: dict[int, int]
) -> bool:
    """Whether the text around a number, or one just before it, lets it be a telephone number."""
    if _UNIT.match(number.near, found.end):
        return False
    start = number.offset + found.start
    if not found.sure:
        if start not in near:
            near[start] = CLUES.before(number.text, start, reach=_NEAR)
        return near[start] is True or (near[start] is None and _is_next(number.text, start, ends))
    clue = CLUES.before(number.text, start)
    return clue is True or (clue is None and not _in_url(number.text, start))


def _is_next(text: str, start: int, ends: dict[int, int]) -> bool:
    """Whether a number stands right after the last one that was found, as in a list."""
    last = next(reversed(ends.values()), start)
    return 0 < start - last < 9 and _BETWEEN.fullmatch(text, last, start) is not None


def _in_url(text: str, start: int) -> bool:
    """Whether a number stands in a URL, or is the value of a name."""
    return _URL.search(text, max(0, start - 80), start) is not None


def _abroad(match: re.Match[str]) -> Found | None:
    """The longest beginning, up to where a group ends, that may be a number of its country."""
    written = match.group()
    first = 1 if written[0] == "(" and ")" not in written else 0
    for end in range(len(written), 7, -1):
        after = match.string[match.start() + end : match.start() + end + 1]
        if not written[end - 1].isdigit() or re.match(r"\w", after, re.ASCII):
            continue
        digits = digits_of(written[first:end].replace("(0)", "")).removeprefix("00")
        if 7 <= len(digits) <= 15 and is_number_abroad(digits):
            sure = _is_international(written[first:end], len(digits))
            return Found(match.start() + first, match.start() + end, sure)
    return None


def _is_international(written: str, digits: int) -> bool:
    """Whether a number is surely written for callers from abroad."""
    if written.startswith("00"):
        code = re.match(r"00(\d{1,3})\D", written)
        return code is not None and is_country_code(code[1])
    if _COORDINATES.fullmatch(written):
        return False
    return digits >= 10 or not written.removeprefix("+").isdigit()


def _nanp(match: re.Match[str]) -> Found:
    written = match.group()
    digits = digits_of(written)
    sure = len(digits) < len(written) and is_number(1, digits[-10:])
    sure = sure and not _CLAUSE.fullmatch(written)
    return Found(*match.span(), sure and not _in_row(match))


def _in_row(match: re.Match[str]) -> bool:
    """Whether a number in groups stands in a row of other numbers, as in a table."""
    written = match.group()
    row = match.string[max(0, match.start() - 4) : match.end() + 2]
    spaced = " " in written and written.replace(" ", "").isdigit()
    at = min(4, match.start())
    return spaced and (_AFTER_NUMBER.search(row, 0, at) or _IN_ROW.search(row)) is not None


def _mobile(match: re.Match[str]) -> Found | None:
    """Eleven digits, in up to five groups. In other than Chinese text they may be any number."""
    body = match[1]
    groups = re.split("[ .-]", body)
    signs = {sign for sign in body if not sign.isdigit()}
    if len(groups) > 5 or len(groups[0]) < 3 or min(map(len, groups)) < 2 or len(signs) > 1:
        return None
    sure = not re.match("[A-Za-z_]", match.string[match.start() - 1 :]) and is_number(
        86, digits_of(body)
    )
    if len(groups) > 1:
        sure = sure and not _in_row(match)
    elif match.group() in (body, f"0{body}"):
        sure = sure and _in_chinese(match)
    return Found(*match.span(), sure)


def _in_chinese(match: re.Match[str]) -> bool:
    """Whether a number stands in Chinese text, where numbers of other things have a label."""
    before = match.string[max(0, match.start() - 12) : match.start()]
    return _CHINESE.search(before + match.string[match.end() :][:12]) is not None


def _landline(match: re.Match[str]) -> Found:
    area, local = match[1] or match[2] or match[3], digits_of(match[4])
    national = digits_of(area).removeprefix("0") + local
    # towns have more digits than the table says, while their numbers are made longer
    in_use = is_number(86, national) or is_number(86, national[:-1])
    written = not match.group().isdigit() or _in_chinese(match)
    return Found(*match.span(), in_use and written and not _in_row(match))


def _service(match: re.Match[str]) -> Found:
    grouped = not match.group().isdigit() and not _in_row(match)
    return Found(*match.span(), grouped or _in_chinese(match))


def _labelled(match: re.Match[str]) -> Found | None:
    """A number right after a label, whatever its form."""
    before = match.string[max(0, match.start() - 24) : match.start()]
    if _LABEL.search(before) and not _DAY.match(match.group()):
        return Found(*match.span(), False)
    return None


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Found | None]], ...] = (
    (_ABROAD, _abroad),
    (_NANP, _nanp),
    (_MOBILE, _mobile),
    (_LANDLINE, _landline),
    (_SERVICE, _service),
    (_ANY, _labelled),
)
