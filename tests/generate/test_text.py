from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.generate.text import TextStream


def pieces_of(data, cuts):
    """Bytes cut into pieces, as the tokens of any tokenizer might be."""
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


def stream(pieces, stop=()):
    text = TextStream(lambda ids: b"".join(pieces[i] for i in ids), stop)
    shown = [text.push(i) for i in range(len(pieces))]
    return text, [*shown, text.finish()]


def test_a_character_is_shown_when_it_is_whole():
    _, shown = stream([bytes([byte]) for byte in "a模😀".encode()])
    assert shown == ["a", "", "", "模", "", "", "", "😀", ""]


def test_bytes_that_are_no_text_are_replaced():
    _, shown = stream([b"a\xe6\xa8", b"b", b"\xff", b"\xf0\x9f"])
    assert "".join(shown) == "a�b��"


def test_a_stop_text_is_not_shown_nor_what_follows():
    text, shown = stream([b"one #", b"#", b"# two", b" three"], ["###"])
    assert "".join(shown) == "one "
    assert shown[0] == "one "
    assert text.stopped


def test_the_beginning_of_a_stop_text_waits_and_then_shows():
    text, shown = stream([b"1\n", b"\n", b"2", b"\n"], ["\n\n\n"])
    assert shown == ["1", "", "\n\n2", "", "\n"]
    assert not text.stopped


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 200), max_size=20))
def test_the_pieces_are_the_text(text, cuts):
    data = text.encode("utf-8", "surrogatepass")
    _, shown = stream(pieces_of(data, cuts))
    assert "".join(shown) == data.decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="ab模\n", max_size=20),
    stops=st.lists(st.text(alphabet="ab模\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 100), max_size=20),
)
def test_the_text_ends_before_a_stop_text(text, stops, cuts):
    found, shown = stream(pieces_of(text.encode(), cuts), stops)
    joined = "".join(shown)
    assert text.startswith(joined)
    assert not any(stop in joined for stop in stops)
    assert found.stopped == any(stop in text for stop in stops)
    if not found.stopped:
        assert joined == text


@pytest.mark.parametrize("pieces", [[b"abc"], [b"ab", b"c"], [b"a", b"b", b"c"]])
def test_the_first_of_several_stop_texts_counts(pieces):
    _, shown = stream(pieces, ["bc", "c"])
    assert "".join(shown) == "a"
