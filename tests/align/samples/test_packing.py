"""Packing against a naive best fit, and what it promises for any lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.align.samples.packing import pack_rows, repeated

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


def naive_rows(lengths: list[int], capacity: int) -> list[int]:
    """The room left in each row of a best fit, by looking at every row."""
    rooms: list[int] = []
    for length in lengths:
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
    drawn = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    assert sorted(rooms) == naive_rows([lengths[place] for place in drawn], 64)


@given(LENGTHS, st.integers(0, 5))
def test_rows_are_a_function_of_seed_and_epoch(lengths: list[int], seed: int) -> None:
    first, again = (pack_rows(np.array(lengths, np.int32), 64, seed, 1) for _ in range(2))
    assert first.items.tolist() == again.items.tolist()
    assert first.starts.tolist() == again.starts.tolist()


def test_another_epoch_comes_in_another_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 500).astype(np.int32)
    orders = [pack_rows(lengths, 64, 0, epoch).items.tolist() for epoch in range(2)]
    assert orders[0] != orders[1]


def test_lengths_as_of_short_answers_fill_rows_with_a_mixture() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.6, 0.7, 20_000), 10, 1024).astype(np.int32)
    rows = pack_rows(lengths, 1024, 0, 0)
    assert lengths.sum() / (len(rows) * 1024) > 0.99
    # The longest first would put samples of one length together.
    several = [lengths[rows[row]] for row in range(len(rows)) if len(rows[row]) > 3]
    assert np.mean([one.std() for one in several]) > 0.7 * lengths.std()


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
