"""Made texts with and without personal data of one kind, as people and programs write them.

The numbers are drawn: ranges kept for fiction where a country has one (NANP 555-01xx, Ofcom's and
ARCEP's), random digits elsewhere. No text comes from the patterns that are measured with it.
"""

from __future__ import annotations

import ipaddress
import random
import re
import tomllib
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """A text; text[start:end] is the personal data, and start is None where it has none."""

    text: str
    start: int | None = None
    end: int = 0


FRAMES = tomllib.loads(Path(__file__).with_name("personal_frames.toml").read_text("utf-8"))

Draw = Callable[[random.Random], str]


def samples(kind: str, language: str, personal: bool, count: int, seed: int) -> list[Sample]:
    """Texts of one kind and language ("en" or "zh"), all with or all without personal data."""
    chance = random.Random(f"{kind} {language} {personal} {seed}")
    made = []
    for _ in range(count):
        if not personal:
            made.append(Sample(_filled(chance, chance.choice(FRAMES[kind][language]["without"]))))
            continue
        what = POSITIVE[kind][language](chance)
        before, _, after = chance.choice(FRAMES[kind][language]["with"]).partition("{}")
        before, after = _filled(chance, before), _filled(chance, after)
        made.append(Sample(before + what + after, len(before), len(before) + len(what)))
    return made


def digits(chance: random.Random, count: int) -> str:
    return "".join(chance.choices("0123456789", k=count))


def grouped(sizes: str, number: str, sign: str = " ") -> str:
    """A number in groups: ("3 4 4", "13812345678") is "138 1234 5678"."""
    groups, at = [], 0
    for size in map(int, sizes.split()):
        groups.append(number[at : at + size])
        at += size
    return sign.join(groups)


def _filled(chance: random.Random, frame: str) -> str:
    """A frame with drawn words: <d4> is four digits, <n9> a number to 9, <A> a name, <D> a date."""
    return re.sub(r"<(d\d+|n\d+|[AD甲]|Luhn16|v4)>", lambda match: _slot(chance, match[1]), frame)


def _slot(chance: random.Random, name: str) -> str:
    if name.startswith("d"):
        return digits(chance, int(name[1:]))
    if name.startswith("n"):  # a number from 1 to the given one
        return str(chance.randint(1, int(name[1:])))
    if name == "D":
        return f"{_day(chance):%Y-%m-%d}"
    if name == "A":
        return chance.choice(("Anna", "Bo", "Chen Li", "Dmitri", "Eve", "Mr. Hale", "Ms. Ito"))
    if name == "甲":
        return chance.choice(("张三", "李四", "王老师", "赵经理", "小陈", "孙工"))
    if name == "Luhn16":
        return luhn(chance.choice("456") + digits(chance, 14))
    return version(chance)


def _day(chance: random.Random, first: int = 1940, last: int = 2024) -> date:
    start = date(first, 1, 1)
    return start + timedelta(chance.randrange((date(last, 1, 1) - start).days))


# --- telephone numbers

_AREAS_TEXT = (
    """201 202 212 213 303 305 312 404 415 503 512 602 617 623 702 713 801 808 888 800 916"""
)
_AREAS = _AREAS_TEXT.split()


_MOBILES = ("30", "35", "38", "39", "50", "58", "66", "77", "86", "89", "99")
_CITIES = ("010", "021", "020", "0755", "0571", "028", "025", "0532", "0592")


def phone_en(chance: random.Random) -> str:
    area, line = chance.choice(_AREAS), f"01{digits(chance, 2)}"
    forms = (
        "{a}-555-{n}", "({a}) 555-{n}", "({a})555-{n}", "{a}.555.{n}", "{a} 555 {n}", "{a}/555-{n}",
        "1-{a}-555-{n}", "1({a})555-{n}", "1 ({a}) 555-{n}", "1.{a}.555.{n}", "+1 {a} 555 {n}",
        "+1-{a}-555-{n}", "+1 ({a}) 555-{n}", "+1{a}555{n}", "({a}) 555 {n}", "{a} 555-{n}",
        "({a}) 555.{n}", "{a}–555–{n}", "({a})-555-{n}", "+1.{a}.555.{n}", "{a} - 555 - {n}",
    )  # fmt: skip
    abroad = (
        f"+44 20 7946 0{digits(chance, 3)}", f"+44 (0)20 7946 0{digits(chance, 3)}",
        f"+44 7700 900{digits(chance, 3)}", f"+447700900{digits(chance, 3)}",
        f"+33 1 99 00 {digits(chance, 2)} {digits(chance, 2)}", f"+61 491 570 {digits(chance, 3)}",
        f"+49 30 23125 {digits(chance, 3)}", f"0044 20 7946 0{digits(chance, 3)}",
        f"+49-30-23125{digits(chance, 3)}", f"+852 2345 {digits(chance, 4)}",
        f"+86 138 {digits(chance, 4)} {digits(chance, 4)}", f"+81 3-5555-{digits(chance, 4)}",
    )  # fmt: skip
    if chance.random() < 0.25:
        return chance.choice(abroad)
    return chance.choice(forms).format(a=area, n=line)


def phone_zh(chance: random.Random) -> str:
    m = "1" + chance.choice(_MOBILES) + digits(chance, 8)
    a = chance.choice(_CITIES)
    n = chance.choice("2568") + digits(chance, 7)
    made = chance.choice(
        (
            m, m, m, grouped("3 4 4", m), grouped("3 4 4", m, "-"), grouped("3 3 5", m),
            grouped("4 3 4", m), grouped("5 6", m), f"+86 {m}", f"+86-{m}", f"+86{m}", f"86-{m}",
            f"(+86){m}", "+86 " + grouped("3 4 4", m), f"{a}-{n}", f"{a}-{n}", f"({a}){n}",
            f"{a}-{n[:4]}-{n[4:]}", f"({a}) {n[:4]}-{n[4:]}", f"（{a}）{n}", f"{a} {n}",
            f"{a} {n[:4]} {n[4:]}", f"+86-{a[1:]}-{n}", f"+86 {a[1:]} {n}", f"{a}－{n}",
            "400-" + grouped("3 4", digits(chance, 7), "-"),
        )
    )  # fmt: skip
    return wide(made) if chance.random() < 0.08 else made


def wide(text: str) -> str:
    """A text with full-width digits."""
    return text.translate({ord("0") + i: ord("０") + i for i in range(10)})


# --- identity numbers and cards


def luhn(start: str) -> str:
    """Digits and their Luhn check digit, counted from its definition."""
    total = 0
    for at, digit in enumerate(reversed(start)):
        value = int(digit) * (2 if at % 2 == 0 else 1)
        total += value // 10 + value % 10
    return start + str(-total % 10)


_REGIONS_TEXT = """
    110101 110108 120103 130102 210102 310104 320106 330106 350203 370202 420106 440305 500103
    510104 610113"""
_REGIONS = _REGIONS_TEXT.split()
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def id_18(chance: random.Random) -> str:
    start = f"{chance.choice(_REGIONS)}{_day(chance):%Y%m%d}{digits(chance, 3)}"
    total = sum(int(d) * w for d, w in zip(start, _WEIGHTS, strict=True))
    return start + "10X98765432"[total % 11]


def id_card(chance: random.Random) -> str:
    n = id_18(chance)
    old = f"{chance.choice(_REGIONS)}{_day(chance, 1940, 1985):%y%m%d}{digits(chance, 3)}"
    made = chance.choice(
        (
            n, n, n, n.lower(), grouped("6 8 4", n), grouped("6 8 4", n, "-"), old, old,
            grouped("6 4 4 4", n), grouped("3 3 4 4 4", n), grouped("4 4 4 4 2", n),
            grouped("6 6 3", old),
        )
    )  # fmt: skip
    return wide(made) if chance.random() < 0.08 else made


def bank_card(chance: random.Random) -> str:
    head, length = chance.choice(
        (
            ("4", 16), ("4539", 16), ("51", 16), ("55", 16), ("2720", 16), ("34", 15), ("37", 15),
            ("6011", 16), ("65", 16), ("3528", 16), ("36", 14), ("622202", 19), ("621700", 19),
            ("622588", 16), ("625", 16), ("622848", 19), ("623", 19), ("628", 16), ("6225", 16),
        )
    )  # fmt: skip
    n = luhn(head + digits(chance, length - 1 - len(head)))
    sizes = {14: "4 6 4", 15: "4 6 5"}.get(length, "4 4 4 4 3")
    spaced = grouped(sizes, n).strip()
    return chance.choice((n, n, spaced, spaced, spaced.replace(" ", "-")))


def ssn(chance: random.Random) -> str:
    area = chance.choice([i for i in range(1, 900) if i != 666])
    return f"{area:03}-{chance.randint(1, 99):02}-{chance.randint(1, 9999):04}"


# --- addresses


def ip(chance: random.Random) -> str:
    while True:
        if chance.random() < 0.15:
            heads = chance.choice(("2a00:1450", "2001:4860", "2606:4700", "240e:3a1"))
            groups = [f"{chance.randrange(1, 65536):x}" for _ in range(6)]
            made = chance.choice(
                (f"{heads}:{':'.join(groups)}", f"{heads}:{groups[0]}::{groups[1]}")
            )
        else:
            made = ".".join(str(chance.randint(1, 254)) for _ in range(4))
        address = ipaddress.ip_address(made)
        if address.is_global and not address.is_multicast:
            return made


def version(chance: random.Random) -> str:
    """Four numbers as programs count: small ones, with a larger one here and there."""
    return ".".join(
        str(chance.choice((0, 0, 1, 2, chance.randint(0, 20), chance.randint(0, 255))))
        for _ in range(4)
    )


_LOCALS_TEXT = """
    li.wei zhang_san jsmith j.doe maria-k chen2008 o.brien_99 k+news wangxm 8823145 a dr.who
    xx88"""
_LOCALS = _LOCALS_TEXT.split()
_HOSTS_TEXT = """
    example.cn mail.shop.org qq.com 163.com gmail.com uni-west.edu dept.univ.ac.uk firma.de
    corp.com.cn startup.io foo.co.jp"""
_HOSTS = _HOSTS_TEXT.split()


def email(chance: random.Random) -> str:
    made = f"{chance.choice(_LOCALS)}@{chance.choice(_HOSTS)}"
    return made.upper() if chance.random() < 0.05 else made


POSITIVE: dict[str, dict[str, Draw]] = {
    "phone": {"en": phone_en, "zh": phone_zh},
    "id_card": {"en": id_card, "zh": id_card},
    "bank_card": {"en": bank_card, "zh": bank_card},
    "ssn": {"en": ssn, "zh": ssn},
    "ip": {"en": ip, "zh": ip},
    "email": {"en": email, "zh": email},
}
