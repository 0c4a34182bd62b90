from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from bc2.tokenizer.sample import MAX_ITEM_BYTES, Sample


def cut(*texts: str, budget: int = 1 << 30) -> tuple[list[bytes], Sample]:
    sample = Sample(budget)
    return list(sample.cut(texts)), sample


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=50).map(lambda t: t * 200)))
def test_items_are_short_utf8_and_nothing_is_lost(texts: list[str]) -> None:
    items, sample = cut(*texts)
    assert all(0 < len(item) <= MAX_ITEM_BYTES for item in items)
    trainable = re.sub("[\0\u2581\u2585]", "", "".join(texts))
    assert "".join(item.decode() for item in items) == trainable
    assert sample.items == len(items)
    assert sample.used_bytes == sum(map(len, items)) == len(trainable.encode())
    assert sample.used_bytes + sample.untrainable_bytes == len("".join(texts).encode())


def test_text_is_cut_at_line_ends() -> None:
    items, sample = cut("0123456789\n" * 1000)
    assert len(items) == 3
    assert all(item.endswith(b"\n") for item in items)
    assert sample.long_lines == 0


def test_a_long_line_is_cut_at_characters_and_counted_once() -> None:
    items, sample = cut("short\n" + "字" * 5000 + "\nshort", "x" * 4097)
    assert [len(item) for item in items] == [6, 4095, 4095, 4095, 2721, 4096, 1]
    assert sample.long_lines == 2
    assert cut("字" * 5000 + "\n" + "字" * 5000)[1].long_lines == 2


def test_a_line_of_exactly_the_limit_is_not_long() -> None:
    items, sample = cut("x" * (MAX_ITEM_BYTES - 1) + "\n" + "y" * MAX_ITEM_BYTES)
    assert [len(item) for item in items] == [MAX_ITEM_BYTES, MAX_ITEM_BYTES]
    assert sample.long_lines == 0


def test_characters_that_no_piece_may_hold_are_cut_out_and_counted() -> None:
    items, sample = cut("a\0b\u2581\u2581c\u2585d\ud800e")
    assert items == [b"a", b"b", b"c", b"d", b"e"]
    assert sample.untrainable_bytes == 1 + 6 + 3 + 3


def test_the_budget_is_a_limit() -> None:
    items, sample = cut(*["x" * 1000] * 10, budget=3999)
    assert sample.used_bytes == 3000 == sum(map(len, items))
    assert sample.documents == 3


def test_empty_texts_are_no_documents() -> None:
    assert cut("", "\0", "a")[1].documents == 1
