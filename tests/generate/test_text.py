from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.generate.live import Live
from bc2.generate.requests import Request
from bc2.generate.sampling_config import SamplingConfig
from bc2.generate.text import TextStream, first_stop


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


def test_the_stop_text_that_is_complete_first_counts_however_tokens_cut():
    for pieces in ([b"xabcd"], [b"xabc", b"d"], [b"x", b"a", b"b", b"c", b"d"]):
        _, shown = stream(pieces, ["abcd", "bc"])
        assert "".join(shown) == "xa"


def before_a_stop(data, stops):
    """The bytes before the stop text that ends first, byte by byte; the longest of several."""
    for end in range(1, len(data) + 1):
        ending = [len(stop) for stop in stops if data[:end].endswith(stop)]
        if ending:
            return data[: end - max(ending)]
    return None


#: Few letters, so that stop texts are met, overlap and are almost met; characters of 1 to 4 bytes,
#: some of which begin alike.
LETTERS = "abé模樣😀😁\n"


@st.composite
def cut_bytes_and_stops(draw):
    """Bytes, of which some are no UTF-8, cut into tokens; and stop texts, some taken from them."""
    parts = st.one_of(st.text(LETTERS, max_size=6).map(str.encode), st.binary(max_size=3))
    data = b"".join(draw(st.lists(parts, max_size=6)))
    stops = draw(st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3))
    text = data.decode("utf-8", "ignore")
    if text and draw(st.booleans()):
        at = draw(st.integers(0, len(text) - 1))
        stops.append(text[at : at + draw(st.integers(1, 4))])
    cuts = draw(st.lists(st.integers(0, 60), max_size=20))
    return pieces_of(data, cuts), stops


@settings(max_examples=600, deadline=None)
@given(cut_bytes_and_stops())
def test_any_bytes_and_stop_texts(case):
    pieces, stops = case
    data = b"".join(pieces)
    before = before_a_stop(data, [stop.encode() for stop in stops])
    found, shown = stream(pieces, stops)
    assert found.stopped == (before is not None)
    assert "".join(shown) == (data if before is None else before).decode("utf-8", "replace")
    at = first_stop(data, [stop.encode() for stop in stops])
    assert at == (None if before is None else len(before))


@settings(max_examples=200, deadline=None)
@given(cut_bytes_and_stops())
def test_a_stream_shows_the_text_of_the_answer(case):
    pieces, stops = case
    config = SamplingConfig(stop=tuple(stops), max_new_tokens=len(pieces) + 1)
    live = Live(0, 0, Request([0], config), lambda ids: b"".join(pieces[i] for i in ids))
    tokens = iter(range(len(pieces)))
    while live.reason is None and (token := next(tokens, None)) is not None:
        live.push(token, (), 1000)
    live.reason = live.reason or "length"
    _, shown = stream(pieces, stops)
    assert live.result().data.decode("utf-8", "replace") == "".join(shown)
