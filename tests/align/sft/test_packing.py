"""Packing against a naive best fit, and what it promises for any lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.align.sft.packing import pack_rows, repeated

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


def naive_rows(lengths: list[int], capacity: int) -> list[int]:
    """The room left in each row of a best fit, the longest first, by looking at every row."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= length]
        if fitting:
            best = min(fitting, key=lambda row: rooms[row])
            rooms[best] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@given(LENGTHS, st.integers(0, 5), st.integers(0, 3))
def test_every_sample_is_in_one_row_as_a_naive_best_fit_has_it(
    lengths: list[int], seed: int, epoch: int
) -> None:
    rows = pack_rows(np.array(lengths, np.int32), 64, seed, epoch)
    assert sorted(rows.items.tolist()) == list(range(len(lengths)))
    rooms = [64 - sum(lengths[item] for item in rows[row]) for row in range(len(rows))]
    assert sorted(rooms) == naive_rows(lengths, 64)


@given(LENGTHS.filter(len), st.integers(0, 5))
def test_epochs_are_equally_long_and_a_function_of_their_seed(
    lengths: list[int], seed: int
) -> None:
    array = np.array(lengths, np.int32)
    first, again, other = (pack_rows(array, 64, seed, epoch) for epoch in (0, 0, 1))
    assert first.items.tolist() == again.items.tolist()
    assert first.starts.tolist() == again.starts.tolist()
    assert len(first) == len(other)


def test_another_epoch_comes_in_another_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 500).astype(np.int32)
    orders = [pack_rows(lengths, 64, 0, epoch).items.tolist() for epoch in range(2)]
    assert orders[0] != orders[1]


def test_lengths_as_of_short_answers_fill_rows() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.6, 0.7, 20_000), 10, 1024).astype(np.int32)
    rows = pack_rows(lengths, 1024, 0, 0)
    assert lengths.sum() / (len(rows) * 1024) > 0.999


@pytest.mark.parametrize("length", [0, 65])
def test_a_sample_that_fits_nowhere_is_an_error(length: int) -> None:
    with pytest.raises(ValueError, match="64"):
        pack_rows(np.array([1, length], np.int32), 64, 0, 0)


def test_times_are_whole_readings_and_a_share() -> None:
    times = np.full(10_000, 2.3)
    counts = np.bincount(repeated(times, 1))
    assert set(counts.tolist()) == {2, 3}
    assert abs(counts.mean() - 2.3) < 0.02
    assert repeated(times, 1).tolist() == repeated(times, 1).tolist()
    assert repeated(np.array([1.0, 2.0]), 0).tolist() == [0, 1, 1]
