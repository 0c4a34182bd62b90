"""Normalisation forms against the standard library, and runs of marks that would take hours."""

from __future__ import annotations

import time
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.text.unicode_forms import nfc, pieces
from bc2.data.prep.text.word_hashes import hashed_words

texts = st.text(st.sampled_from("eé\u0301\u0323\u0338ﬁ한\u1161ｶﾞa \n"), max_size=150) | st.text()
MARKS = ["\u0301\u0323", "ﾞ\u0338", "\u0344\u0323", "\u0e48\u0e38"]


def has_long_run(text: str) -> bool:
    run = longest = 0
    for character in text:
        mark = unicodedata.category(character)[0] == "M" or character in "ﾞﾟ"
        run = run + 1 if mark else 0
        longest = max(longest, run)
    return longest > 64


@settings(max_examples=200, deadline=None)
@given(texts)
def test_a_text_is_what_the_standard_library_makes_of_it(text):
    assert "".join(pieces(text)) == text
    assert has_long_run(text) or pieces(text) == [text]
    assert has_long_run(text) or nfc(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("count", [1, 31, 32])
def test_runs_of_up_to_64_marks_are_whole(count):
    run = "e" + "\u0301\u0323" * count + "x" * 99
    assert nfc(run) == unicodedata.normalize("NFC", run)
    assert len(pieces(run.replace("x", "\u0301"))) == (1 + 2 * count + 99) // 64 + 1


@pytest.mark.parametrize("marks", MARKS)
def test_a_long_run_of_marks_is_converted_in_linear_time(marks):
    """A megabyte and more; at once it would take minutes."""
    run = f"é{marks * 200_000}x"
    begun = time.process_time()
    made = nfc(run)
    assert time.process_time() - begun < 5  # 0.1 where it was measured
    assert made.endswith("x")
    assert max(map(len, pieces(run))) == 65
    plain = [sorted("".join(map(decomposed, pieces(one)))) for one in (run, made)]
    assert plain[0] == plain[1]


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("marks", MARKS)
def test_words_with_long_runs_of_marks_are_hashed_in_linear_time(marks):
    run = f"a e{marks * 200_000}x b"
    begun = time.process_time()
    words = hashed_words(pa.array([run, "a e\u0301 b"], pa.large_string()))
    assert time.process_time() - begun < 5
    assert words.counts.tolist()[1] == 3
    assert words.hashes[0] == words.hashes[-3]
