"""Find personal data in text, and mask it.

A number counts as personal data only if there is evidence: check digits (ISO 7064 MOD 11-2 for
Chinese identity numbers, GB 11643-1999; Luhn for bank cards, ISO/IEC 7812) and ranges in use
(telephone numbers by Google's libphonenumber, IP addresses by Python's `ipaddress`). The text
before a number may show that it is something else (ISBN, DOI, version, section).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from typing import NamedTuple

from bc2.data.prep.settings import PersonalKind

#: The kinds that are searched for in code, where other numbers are literals.
IN_CODE: frozenset[PersonalKind] = frozenset({"email", "key"})


Places = Sequence[tuple[int, int]]


class PersonalData(NamedTuple):
    """One piece of personal data: text[start:end]."""

    start: int
    end: int
    kind: PersonalKind


_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+/=@-])[A-Za-z0-9_%+][A-Za-z0-9._%+-]{0,63}"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9_@-]|:[\w/])"
)

#: Hosts that belong to nobody, most of them reserved by RFC 2606 and RFC 6761.
_RESERVED = re.compile(
    r"(?:^|[@.])(?:example\.(?:com|net|org)|example|test|invalid|localhost|local|domain\.com)$"
)

#: Ends of file names that look like hosts: ``icon@2x.png``.
_FILES = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|[jt]sx?|css|py|json|html?|md|txt|xml|ya?ml)$")

#: Secret keys in the forms that their issuers chose so that they can be recognised. Each pattern
#: begins with fixed letters, which `re` finds fast.
_KEYS = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[A-Za-z0-9+/=\s:,\\-]{64,}?-----END (?:[A-Z]+ )*"
        r"PRIVATE KEY-----",
        r"AKIA[0-9A-Z]{16}(?!\w)",  # Amazon
        r"ASIA[0-9A-Z]{16}(?!\w)",
        r"gh[pousr]_[A-Za-z0-9]{36,}",  # GitHub
        r"github_pat_\w{50,}",
        r"glpat-[\w-]{20,}",  # GitLab
        r"xox[abprs]-[A-Za-z0-9-]{20,}",  # Slack
        r"AIza[\w-]{35}(?![\w-])",  # Google
        r"sk-(?:proj-|ant-)?[\w-]{32,}",  # OpenAI, Anthropic
        r"hf_[A-Za-z]{34}(?!\w)",  # Hugging Face
    )
)

#: Where a number may be; the patterns below are tried only there.
_DIGITS = re.compile(r"[+(（\d][\d ()（）.-]{5,}[\dXx]", re.ASCII)

_ID_CARD = re.compile(r"(?<![\w.])[1-8]\d{5}(?:18|19|20)\d{9}[\dXx](?![\w.])", re.ASCII)
_SSN = re.compile(
    r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-]|\.\d)", re.ASCII
)
_CARD = re.compile(
    r"(?<![\w.-])(?:\d{14,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?"
    r"|3[47]\d{2}([ -])\d{6}\2\d{5})(?![\w-]|\.\d)",
    re.ASCII,
)
_CARD_RANGES = re.compile(r"4|5[1-5]|2[2-7]|3[4-9]|62|6011|64[4-9]|65|8[12]")

_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"[23][0-9a-fA-F]{3}:(?<![\w:.].{5})[0-9a-fA-F:]{2,34}(?![\w:])", re.ASCII)

#: A telephone number with the code of its country.
_ABROAD = re.compile(r"(?<![\w+.=*/(-])\+[1-9](?:[ .-]?\(?\d{1,4}\)?){2,7}(?![\w-])", re.ASCII)

#: Telephone numbers of North America; Chinese mobile numbers; Chinese landline numbers with the
#: code of their area.
_PHONES = (
    (
        "US",
        r"(?<![\w.+=-])(?:\([2-9]\d{2}\) ?|[2-9]\d{2}-)[2-9]\d{2}-\d{4}(?![\w-]|\.\d)",
    ),
    ("CN", r"(?<![\w.+=-])(?:86[- ]?)?1[3-9]\d([- ]?)\d{4}\1\d{4}(?![\w-]|\.\d)"),
    (
        "CN",
        r"(?<![\w.+=-])(?:0\d{2,3}[- ]|[(（]0\d{2,3}[)）] ?)[2-9]\d{6,7}(?![\w-]|\.\d)",
    ),
)
_PHONES_OF = tuple((region, re.compile(pattern, re.ASCII)) for region, pattern in _PHONES)

#: Text just before a number that shows that it is not personal.
_NOT_PERSONAL = re.compile(
    r"(?:ISBN|ISSN|DOI|doi|OCLC|EAN|UPC|LCCN|arXiv|RFC|CVE|issue|bug|order|书号|刊号|标准|[#$€£¥])"
    r"[\w:：./ -]{0,8}$",
    re.IGNORECASE,
)
_VERSION = re.compile(
    r"(?:version|ver|release|section|chapter|clause|oid|build|rev|版本|第|章|节|条|[§v])\W{0,3}$",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?:\bip|address|host|server|addr|地址|服务器|主机)\W", re.IGNORECASE)

#: If all four numbers of an IP address are at most this, it counts as the number of a section or
#: version, unless words such as "address" come before it.
_SMALL_OCTET = 50


def find_personal(text: str, kinds: Iterable[PersonalKind]) -> list[PersonalData]:
    """Find personal data of some kinds, in the order of the text; no piece overlaps another.

    Where two would overlap, the kind that comes first among key, email, id_card, bank_card, ssn,
    ip and phone counts.
    """
    wanted = set(kinds)
    # Patterns may look at any text before a place, but only at two characters after it.
    numbers = _DIGITS.finditer(text) if wanted & _NUMBERS.keys() else ()
    places = [(match.start(), match.end() + 2) for match in numbers]
    taken: list[PersonalData] = []
    for kind in _BY_PRIORITY:
        if kind not in wanted:
            continue
        spans = _NUMBERS[kind](text, places) if kind in _NUMBERS else _OTHERS[kind](text)
        for start, end in spans:
            if all(end <= other.start or start >= other.end for other in taken):
                taken.append(PersonalData(start, end, kind))
    return sorted(taken)


def mask_personal(text: str, found: Iterable[PersonalData], mask: str) -> str:
    """The text with each piece replaced by `mask`, formatted with ``KIND`` and ``kind``."""
    parts: list[str] = []
    end = 0
    for piece in found:
        parts += [text[end : piece.start], mask.format(KIND=piece.kind.upper(), kind=piece.kind)]
        end = piece.end
    return "".join([*parts, text[end:]])


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        host = match.group().rpartition("@")[2].lower()
        if not _RESERVED.search(host) and not _FILES.search(host):
            yield match.span()


def _keys(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _KEYS:
        for match in pattern.finditer(text):
            before = text[max(0, match.start() - 1) : match.start()]
            # a key does not begin inside a word
            if not (before.isascii() and (before.isalnum() or before == "_")):
                yield match.span()


def _matches(pattern: re.Pattern[str], text: str, places: Places) -> Iterator[re.Match[str]]:
    for start, end in places:
        yield from pattern.finditer(text, start, end)


def _id_cards(text: str, places: Places) -> Iterator[tuple[int, int]]:
    for match in _matches(_ID_CARD, text, places):
        if is_id_card(match.group()):
            yield match.span()


def is_id_card(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number, by date of birth and check digit."""
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    weighted = sum(int(digit) * pow(2, 17 - i, 11) for i, digit in enumerate(number[:17]))
    return "10X98765432"[weighted % 11] == number[17].upper()


def _cards(text: str, places: Places) -> Iterator[tuple[int, int]]:
    for match in _matches(_CARD, text, places):
        digits = re.sub(r"\D", "", match.group())
        if _CARD_RANGES.match(digits) and is_luhn(digits) and not _is_other(text, match.start()):
            yield match.span()


def is_luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others, and not all are equal."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 * (d > 9) for d in doubled) % 10 == 0 and len(set(digits)) > 1


def _ssns(text: str, places: Places) -> Iterator[tuple[int, int]]:
    for match in _matches(_SSN, text, places):
        if not _is_other(text, match.start()):
            yield match.span()


def _ips(text: str, places: Places) -> Iterator[tuple[int, int]]:
    for match in _matches(_IPV4, text, places):
        octets = match.group().split(".")
        before = text[max(0, match.start() - 30) : match.start()].rpartition("\n")[2]
        small = all(int(octet) <= _SMALL_OCTET for octet in octets)
        if (small and not _ADDRESS.search(before)) or _VERSION.search(before):
            continue
        if _is_public(match.group()):
            yield match.span()
    for match in _IPV6.finditer(text):
        if _is_public(match.group()):
            yield match.span()


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


def _phones(text: str, places: Places) -> Iterator[tuple[int, int]]:
    import phonenumbers

    for match in _matches(_ABROAD, text, places):
        number = match.group()
        if number[1:].isdigit() and len(number) < 11:
            continue  # such as +20000000, an amount
        for inner in phonenumbers.PhoneNumberMatcher(number, None):
            yield match.start() + inner.start, match.start() + inner.end
    for region, pattern in _PHONES_OF:
        for match in _matches(pattern, text, places):
            parsed = phonenumbers.parse(match.group(), region)
            if phonenumbers.is_valid_number(parsed) and not _is_other(text, match.start()):
                yield match.span()


def _is_other(text: str, start: int) -> bool:
    """Whether the text before a number shows that it is not personal."""
    return _NOT_PERSONAL.search(text, max(0, start - 16), start) is not None


_OTHERS: dict[PersonalKind, Callable[[str], Iterator[tuple[int, int]]]] = {
    "key": _keys,
    "email": _emails,
}

#: The kinds that are searched for only at the places of `_DIGITS`.
_NUMBERS: dict[PersonalKind, Callable[[str, Places], Iterator[tuple[int, int]]]] = {
    "id_card": _id_cards,
    "bank_card": _cards,
    "ssn": _ssns,
    "ip": _ips,
    "phone": _phones,
}

_BY_PRIORITY: tuple[PersonalKind, ...] = (*_OTHERS, *_NUMBERS)
