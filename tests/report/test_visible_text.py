"""Text that came from anywhere, made safe to show."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.report.visible_text import language_tag, size, visible


@given(st.text(st.characters()))
def test_only_what_shows_is_left(text: str) -> None:
    shown = visible(text)
    shown.encode()
    for character in shown:
        category = unicodedata.category(character)
        assert category[0] != "C" or character in "\n\t\u200c\u200d"
        assert category not in ("Zl", "Zp")
    harmless = "".join(c for c in text if unicodedata.category(c)[0] in "LMNPS" or c in " \n\t")
    assert visible(harmless) == harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc 汉字 مرحبا 👩\u200d🔬", "a\tb\nc 汉字 مرحبا 👩\u200d🔬"),
        ("\x1b[2J\r", "\\x1b[2J\\x0d"),
        ("\u202eexe\u2066", "\\u202eexe\\u2066"),
        ("\ufeffx\u200b", "\\ufeffx\\u200b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_long_text_is_cut() -> None:
    assert visible("abcdef", 6) == "abcdef"
    assert visible("abcdefg", 6) == "abcdef…"


def test_languages_that_a_page_may_name() -> None:
    tags = [language_tag(one) for one in ("zh", "zh-Hant", "en", "code", "x y", '"', "", None)]
    assert tags == ["zh", "zh-Hant", "en", None, None, None, None, None]


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1500, 157_300_000, -2 * 10**9, 2 * 10**12)] == [
        "0 B", "999 B", "1.50 kB", "157.30 MB", "-2.00 GB", "2.00 TB",
    ]  # fmt: skip
