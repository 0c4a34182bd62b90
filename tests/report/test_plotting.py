"""That a long run's extremes are drawn, and a median that spikes do not bend."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bc2.report.plotting import LIMIT, running_median, thin

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400)


@given(VALUES, st.integers(4, 60))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float], limit: int) -> None:
    y = np.array(values)
    kept = thin(y, limit)
    assert len(kept) <= limit + 2
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == len(y) - 1
    assert y[kept].min() == y.min()
    assert y[kept].max() == y.max()


def test_a_spike_of_one_step_in_half_a_million_is_drawn() -> None:
    y = np.zeros(500_000)
    y[123_457] = 9.0
    kept = thin(y)
    assert 123_457 in kept
    assert len(kept) <= LIMIT + 2


@given(VALUES)
def test_a_running_median_lies_within_the_values_and_ends_with_them(values: list[float]) -> None:
    at, median = running_median(np.array(values), points=50)
    assert len(at) == len(median) <= 50
    assert min(values) <= median.min() <= median.max() <= max(values)
    assert median[0] == values[0]


def test_a_running_median_is_not_bent_by_a_spike() -> None:
    y = np.ones(600)
    y[300] = 100.0
    assert running_median(y)[1].max() == 1.0
