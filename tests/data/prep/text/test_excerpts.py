"""Excerpts show the place that they are about, no personal data, and no half mask."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.settings import PersonalKind
from bc2.data.prep.text.excerpts import beginning, excerpt
from bc2.data.prep.text.personal_data import IN_CODE, find_personal

KINDS = get_args(PersonalKind)
MASK = re.compile(r"\[(?:EMAIL|PHONE|ID_CARD|SSN|IP|BANK_CARD|KEY)\]")
KEY = f"-----BEGIN PRIVATE KEY-----\n{'MIIEvQIBADANBgkqhkiG9w0B' * 60}\n-----END PRIVATE KEY-----"
PIECES = [
    *("river ", "the 3 harbours, ", "春眠不觉晓，", "\n\n", "[", "] "),
    *("jane.doe@harvestmail.net ", "(212) 664-7665 ", "手机 13812345678，", "ISBN 212-664-7665 "),
    *(f"sk-{'a1B2' * 9} ", f"{KEY} "),
]


def as_pattern(shown: str) -> re.Pattern[str]:
    """What the shown text stands for: masks for anything."""
    parts = map(re.escape, MASK.split(shown))
    return re.compile("(?:.{3,})".join(parts), re.DOTALL)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=30),
    place=st.tuples(st.integers(0, 400), st.integers(0, 30)),
    sides=st.tuples(st.integers(0, 120), st.integers(0, 120)),
    lang=st.sampled_from([None, "en", "code-python"]),
)
def test_an_excerpt_is_the_text_around_a_place_without_personal_data(pieces, place, sides, lang):
    text = "".join(pieces)
    start = place[0] % len(text)
    stop = min(len(text), start + place[1])
    shown = excerpt(text, lang, (start, stop), *sides)
    kinds = IN_CODE if lang == "code-python" else KINDS
    assert find_personal(shown.text, kinds) == []
    assert as_pattern(shown.text).search(text), "nothing else is changed"
    marked = shown.text[shown.start : shown.stop]
    if not MASK.search(marked):
        assert marked == text[start:stop]
    for piece in find_personal(text, kinds):
        if piece.start < stop and start < piece.end:
            assert f"[{piece.kind.upper()}]" in marked
    far = [shown.text[: shown.start], shown.text[shown.stop :]]
    for side, limit in zip(far, sides, strict=True):
        assert len(MASK.sub("", side)) <= limit


def test_numbers_that_only_look_personal_in_the_excerpt_are_masked_too():
    text = f"ISBN 212-664-7665 {'word ' * 40}"
    assert excerpt(text, None, (5, 5), 0, 60).text.startswith("[PHONE] word")
    assert excerpt(text, None, (5, 5), 5, 60).text.startswith("ISBN 212-664-7665 word")


def test_what_says_that_a_number_is_personal_may_stand_before_the_excerpt():
    text = "手机 13812345678，谢谢"
    assert excerpt(text, "zh", (3, 3), 0, 60).text == "[PHONE]，谢谢"


def test_a_key_that_begins_far_before_the_place_is_masked_whole():
    text = f"{'word ' * 2000}{KEY} and then the place."
    shown = excerpt(text, "en", (text.index("place"), len(text) - 1), 30, 30)
    assert shown.text == "[KEY] and then the place."
    assert shown.text[shown.start : shown.stop] == "place"


def test_the_window_is_small_whatever_the_text():
    """An excerpt of 40 MB takes no longer than one of 40 kB."""
    text = "word " * 8_000_000
    place = len(text) // 2
    assert excerpt(text, None, (place, place + 4), 10, 10).text == "word word word word word"[:24]


@pytest.mark.parametrize("most", range(40))
def test_a_beginning_has_no_half_mask(most):
    text = "to jane.doe@harvestmail.net and (212) 664-7665, thanks"
    shown = beginning(text, None, most)
    assert len(shown) <= most
    assert "[" not in MASK.sub("", shown)
    assert "to [EMAIL] and [PHONE], thanks".startswith(shown)
