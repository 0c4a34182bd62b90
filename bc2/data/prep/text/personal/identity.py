"""Identity numbers of China, social security numbers of the United States, and bank cards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from bc2.data.prep.text.personal.clues import Clues
from bc2.data.prep.text.personal.numbers import Numbers, digits_of

_OTHER_NUMBERS = """
    order orders isbn issn doi oclc ean upc lccn arxiv rfc cve issue bug serial sku item part
    model invoice ticket tracking ref reference version seed offset size bytes price total
    amount commit hash pid uid imei imsi timestamp snowflake token status catalog catalogue
    product cas transaction memory time zip patent licence license key user users value p/n
    s/n lot kit code case batch voucher docket form report 订单 单号 编号 流水 序列 书号 刊号
    标准 编码 条码 条形码 学号 工号 税号 型号 货号 批号 版本 时间戳 金额 人民币 价格 总计 合计
    发票 快递 运单 工单 合同 交易 用户 设备 工商 注册号 信用代码 识别号 执照 微博 零件 案号
    编码 保单 会员 学籍 医保 社保 备案 企业 快件 宗地 商品
"""

_IDENTITY = Clues(
    yes="""
    identity identification idcard idnumber idno prc chinese sfz citizen resident national
    passport 身份证 身份 证件 公民 居民
""",
    no=_OTHER_NUMBERS + " account 账号 帐号 卡号",
)
_SOCIAL = Clues(
    yes="""
    ssn ss social security soc sec taxpayer 社会安全 社会保障 社安 社会安全号 社安号
    社会安全码 社会安全号码 社安号码 社会保障号 社会保障号码
""",
    no=_OTHER_NUMBERS + " id ids idcard idnumber idno tel phone fax 号 码",
)
_CARD = Clues(
    yes="""
    card cards charged pay paid payment credit debit visa mastercard amex unionpay discover
    jcb maestro bank cc pan 银行 卡号 银行卡 信用卡 借记卡 储蓄卡 工资卡 卡 账号 帐号 账户
    开户 工行 农行 中行 建行 招行 交行 转账 转到 汇款 收款 打款 付款 户名 我卡 卡上 持卡人
    卡主
""",
    no=_OTHER_NUMBERS
    + " id ids idcard idnumber idno 身份证 graphics video sound network 显卡 网卡 声卡 电话 手机",
)

#: What is written after an identity number, and after the number of a card.
_IDENTITY_AFTER = re.compile(r" ?[(（](?:居民|中国)?(?:身份证|identity|ID card)", re.IGNORECASE)
_CARD_AFTER = re.compile(
    r"[ ,;:，；(（]{0,3}(?:(?:visa|mastercard|amex|unionpay|exp|expires|cvv|cvc|valid)\b"
    r"|有效期|户名|开户|[\u4e00-\u9fff]{2,4}银行)",
    re.IGNORECASE,
)

#: Beginnings of the divisions of China at the level of provinces (GB/T 2260).
_PROVINCES = frozenset(
    [
        "11",
        "12",
        "13",
        "14",
        "15",
        "21",
        "22",
        "23",
        "31",
        "32",
        "33",
        "34",
        "35",
        "36",
        "37",
        "41",
        "42",
        "43",
        "44",
        "45",
        "46",
        "50",
        "51",
        "52",
        "53",
        "54",
        "61",
        "62",
        "63",
        "64",
        "65",
        "71",
        "81",
        "82",
        "83",
    ]
)

#: Every place where 18 or 15 digits may begin; spaces and hyphens may stand between them.
_ID_18 = re.compile(
    r"(?<!\d)(?<!\d[. -])(?=([1-8](?:[ -]?\d){16}[ -]?[\dXx])(?![A-Za-z\d_]))", re.ASCII
)
_ID_15 = re.compile(r"(?<!\d)(?<!\d[. -])(?=([1-8](?:[ -]?\d){14})(?!\w|[.-]\d))", re.ASCII)


def id_cards(numbers: list[Numbers]) -> Iterator[tuple[int, int]]:
    """Places of Chinese identity numbers: those of 18 characters, and of 15 before 1999."""
    for number in numbers:
        for match in number.matches(_ID_18, least=18):
            if is_id_card(_compact(match[1])):
                yield number.offset + match.start(1), number.offset + match.end(1)
        for match in number.matches(_ID_15, least=15):
            start, end = number.offset + match.start(1), number.offset + match.end(1)
            if not _is_old_id_card(_compact(match[1])):
                continue
            if _IDENTITY.before(number.text, start) or _IDENTITY_AFTER.match(number.text, end):
                yield start, end


def _compact(written: str) -> str:
    return written.replace(" ", "").replace("-", "")


def is_id_card(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number (GB 11643-1999).

    The division is one of a province in use, the date of birth is a day, and the last character is
    the check digit of the others (ISO 7064 MOD 11-2).
    """
    if number[:2] not in _PROVINCES or number[6:8] not in ("18", "19", "20"):
        return False
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    weighted = sum(int(digit) * pow(2, 17 - i, 11) for i, digit in enumerate(number[:17]))
    return "10X98765432"[weighted % 11] == number[17].upper()


def _is_old_id_card(number: str) -> bool:
    """Whether 15 digits may be an identity number of before 1999, which has no check digit."""
    try:
        date(1900 + int(number[6:8]), int(number[8:10]), int(number[10:12]))
    except ValueError:
        return False
    return number[:2] in _PROVINCES


_SSN = re.compile(
    r"(?<![\w.-])(?!000|666|9)\d{3}([ -]?)(?!00)\d{2}\1(?!0000)\d{4}(?!\w|[.-]\d)", re.ASCII
)


#: A word right before a number, which then is the number of something else.
_NAMED = re.compile(
    r"(?<![A-Za-z])(?!(?:is|was|for|of|shows?|and|or|as)\b)[A-Za-z]{2,16}\.? ?\Z"
    r"|[\u4e00-\u9fff] ?\Z"
)


def ssns(numbers: list[Numbers]) -> Iterator[tuple[int, int]]:
    """Places of social security numbers; without hyphens only where a word speaks for them."""
    for number in numbers:
        for match in number.matches(_SSN, least=9):
            start = number.offset + match.start()
            clue = _SOCIAL.before(number.text, start)
            alone = match[1] == "-" and not _NAMED.search(number.text, max(0, start - 16), start)
            if clue or (clue is None and alone):
                yield start, number.offset + match.end()


#: As numbers are grouped on cards, and in any other way.
_CARD_FORM = re.compile(
    r"(?<!\d)(?<!\d[.-])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?"
    r"|3[47]\d{2}([ -])\d{6}\2\d{5}|3[0689]\d{2}([ -])\d{6}\3\d{4})(?!\w|[.-]\d)",
    re.ASCII,
)
_CARD_DIGITS = re.compile(r"(?<!\d)(?<!\d[.-])\d(?:[ -]?\d){12,18}(?!\w|[.-]\d)", re.ASCII)

_IN_WORD = re.compile("[A-Za-z_]")

#: Issuers' prefixes (ISO/IEC 7812) and the lengths of their numbers.
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"30[0-5]|3095|3[689]"), (14, 16, 19)),  # Diners Club
    (re.compile(r"6011|64[4-9]|65"), (16, 19)),  # Discover
    (re.compile(r"62|81"), (16, 17, 18, 19)),  # UnionPay
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 19)),  # JCB
    (re.compile(r"220[0-4]"), (16, 17, 18, 19)),  # Mir
    (re.compile(r"5018|5020|5038|5893|6304|6759|676[1-3]"), (13, 15, 16, 19)),  # Maestro
    (re.compile(r"955[58]|60[13]|9[4-6]|69"), (16, 17, 18, 19)),  # older cards of Chinese banks
)


def bank_cards(numbers: list[Numbers]) -> Iterator[tuple[int, int]]:
    """Places of numbers of bank cards.

    Of random numbers of 16 digits, one in fifty has an issuer's prefix and the check digit, so a
    number counts only if it is also grouped as on a card, or a word speaks for it.
    """
    for number in numbers:
        for pattern in (_CARD_FORM, _CARD_DIGITS):
            for match in number.matches(pattern, least=13):
                digits = digits_of(match.group())
                alone = pattern is _CARD_FORM and not _IN_WORD.match(number.near, match.start() - 1)
                if is_issued(digits) and is_luhn(digits) and _is_card(number, match, alone):
                    yield number.offset + match.start(), number.offset + match.end()


def _is_card(number: Numbers, match: re.Match[str], alone: bool) -> bool:
    """Whether the text around a number lets it be that of a card."""
    clue = _CARD.before(number.text, number.offset + match.start())
    if clue is None and _CARD_AFTER.match(number.text, number.offset + match.end()):
        return True
    return clue is True or (clue is None and alone)


def is_issued(digits: str) -> bool:
    """Whether digits begin with the prefix of an issuer of cards of that length."""
    return any(len(digits) in lengths and prefix.match(digits) for prefix, lengths in _ISSUERS)


def is_luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others, and not all are equal."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 * (d > 9) for d in doubled) % 10 == 0 and len(set(digits)) > 1
