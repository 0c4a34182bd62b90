"""Folding whole texts: against Unicode's definition, and where each character is from."""

from __future__ import annotations

import time
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bc2.data.prep.stages.decontamination.folding import SEPARATOR, folded
from bc2.data.prep.stages.decontamination.ngram_index import Units

#: Characters that become several, combine, or must not: ligatures, fractions, sharp s, dotted
#: capital I, marks of several classes, Hangul in letters, half-width kana, signs that compose.
STRANGE = (
    *"ﬁﬂﬃﬆ½⅓①㎏㈱㍿…ßẞİıŉΐΣςſ",
    *(
        "e",
        "a",
        "o",
        "i",
        "s",
        "=",
        "<",
        "\u0301",
        "\u0323",
        "\u0338",
        "\u0345",
        "\u0327",
        "\u0344",
    ),
    *("ᄀ", "ᅡ", "ᆨ", "가", "각", "ㄱ", "ㅏ", "ｶ", "ﾞ", "カ", "\u3099", "か"),
    *("\u212b", "\u2126", "ａ", "Ａ", "，", "豈", "⼈", "क", "\u093c", "\u0958", "ำ", "\u0e48"),
    *(
        " ",
        "\n",
        ".",
        "\u00b4",
        "\u00ad",
        "\u200b",
        "\ufe0f",
        "\u034f",
        "\U000e0101",
        "\ud800",
        "™",
    ),
    "\U0010ffff",
)
texts = st.lists(st.sampled_from(STRANGE), max_size=14).map("".join) | st.text(max_size=14)


def not_seen(character: str) -> bool:
    """Unicode's Default_Ignorable_Code_Point among what is assigned, without U+2065."""
    code = ord(character)
    return unicodedata.category(character) == "Cf" or any(
        first <= code <= last
        for first, last in [
            (0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
            (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF),
        ]
    )  # fmt: skip


def only_separates(character: str) -> bool:
    """White space, punctuation, accents that stand alone, signs of trade; but not line ends."""
    category = unicodedata.category(character)
    return character in "™℠" or category == "Sk" or (category[0] in "PZ" and character != "\n")


def reference(text: str) -> str:
    """NFKC with case folded of a text, line by line; letters and marks alone."""
    kept = "".join(c for c in text if not not_seen(c))
    kept = "".join(" " if only_separates(c) else c for c in kept)
    lines = [
        unicodedata.normalize("NFKC", unicodedata.normalize(
            "NFKC", unicodedata.normalize("NFKD", line).casefold()
        ).casefold())
        for line in kept.split("\n")
    ]  # fmt: skip
    return "".join(c for c in "\n".join(lines) if unicodedata.category(c)[0] in "LMN")


def letters_of(text: str) -> str:
    found = folded(text)
    codes = found.codes[found.kinds != SEPARATOR]
    return "".join(map(chr, codes.tolist()))


def words_of(text: str) -> list[str]:
    units = Units.of([text])
    letters = "".join(map(chr, units.characters.tolist()))
    return [letters[a:b] for a, b in zip(units.edges, units.edges[1:], strict=False)]


@settings(max_examples=600, deadline=None)
@given(text=texts)
@example("=\u0338 x")
@example("ㄱㅏ")
@example("\u0301\u0344")
def test_it_is_what_unicode_says(text: str) -> None:
    assert letters_of(text) == reference(text)


def test_every_character_alone_and_after_a_letter() -> None:
    """Every one that can be in a text but those that separate whatever they become."""
    every = [
        chr(c) for c in range(0xF0000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")
    ]
    every = [c for c in every if not unicodedata.category(c).startswith(("S", "P", "Z", "C"))]
    text = "\n".join(f"{c} e{c}\u0301" for c in every)
    assert letters_of(text) == reference(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the ﬁnal oﬃce ﬂow", "the final office flow"),
        ("cafe\u0301 nai\u0308ve", "café naïve"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ１２", "full width12"),
        ("½ cup", "1/2 cup"),
        ("한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
        ("ﾊﾟｿｺﾝ ガギ", "パソコン カ\u3099キ\u3099"),
        ("Straße GROẞ", "STRASSE gross"),
        ("İstanbul", "i\u0307stanbul"),
        ("a\u0323\u0301", "a\u0301\u0323"),
        ("ΟΔΟΣ", "οδος"),
        ("a ≠ b", "a =\u0338 b"),
        ("don´t", "don't"),
        ("Foo™ bar", "Foo bar"),
        ("5 ㎏ 25℃", "5 kg 25°C"),
        ("so\u00adft wo\u200brd ❤\ufe0f 葛\U000e0100", "soft word ❤ 葛"),
        ("下⾯", "下面"),
    ],
)
def test_what_reads_alike_has_the_same_words(one: str, other: str) -> None:
    assert words_of(one) == words_of(other)
    assert words_of(f"{other} {one}") == words_of(other) * 2


@settings(max_examples=300, deadline=None)
@given(text=texts, form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_forms_and_case_make_no_difference(text: str, form: str) -> None:
    text = text.replace("\ud800", "").replace("™", "")
    text = "".join(c for c in text if unicodedata.category(c) != "Sk" and not not_seen(c))
    changed = unicodedata.normalize(form, text)
    assert words_of(changed) == words_of(text)
    text = text.replace("\u0345", "")  # folded before marks are in order it is another letter's
    assert letters_of(text.casefold()) == letters_of(text)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(texts, max_size=4))
def test_places_are_those_of_the_text(parts: list[str]) -> None:
    units = Units.of(parts)
    assert (np.diff(units.text) >= 0).all()
    for number, text in enumerate(parts):
        mine = units.text == number
        start, stop = units.start[mine], units.stop[mine]
        assert ((start >= 0) & (start < stop) & (stop <= len(text))).all()
        assert (np.diff(start) >= 0).all()
        alone = Units.of([text])
        assert alone.start.tolist() == start.tolist()
        assert alone.stop.tolist() == stop.tolist()
        seen = "".join(c for c in text if not not_seen(c))
        if unicodedata.normalize("NFKD", seen) != "".join(
            unicodedata.normalize("NFKD", c) for c in seen
        ):
            continue  # marks that are put in order
        # cut at a place, a text has the same words
        for first in start.tolist():
            count = int((alone.start >= first).sum())
            assert words_of(text[first:])[-count:] == words_of(text)[-count:]


def test_a_place_is_that_of_the_character() -> None:
    text = "\u200b“ﬁnd” \u00bd e\u0301a x\u00ad\u0301 Straße."
    units = Units.of([text])
    found = [text[a:b] for a, b in zip(units.start.tolist(), units.stop.tolist(), strict=True)]
    assert found == ["ﬁnd", "½", "½", "e\u0301a", "x\u00ad\u0301", "Straße"]


@pytest.mark.parametrize(
    "unit",
    [
        "\u0301\u0323", "e\u0301", "ﷺ", "ß", "\u200b", "\u1100\u1161\u11a8", "हिन्दी ",
        "e\u0323\u0302", "\u0344", "a\ufe0f", "\n\u0301",
    ],
)  # fmt: skip
def test_time_is_linear(unit: str) -> None:
    def seconds(count: int) -> float:
        text = unit * (count // len(unit))
        took = []
        for _ in range(3):
            begun = time.process_time()
            Units.of([text])
            took.append(time.process_time() - begun)
        return min(took)

    seconds(1000)
    short, long = seconds(20_000), seconds(160_000)
    assert long < 16 * short + 0.05  # eight times as long a text
    assert long < 1.0  # of at least 160 kB; 0.02 to 0.15 where it was measured


def test_a_run_of_marks_is_folded_in_pieces() -> None:
    text = "e" + "\u0301\u0323" * 100
    plain = unicodedata.normalize("NFD", letters_of(text))
    assert sorted(plain) == sorted(text)
    assert letters_of(text) != unicodedata.normalize("NFC", text)
    assert letters_of(text[:31]) == unicodedata.normalize("NFC", text[:31])
