"""Shares of a peak: over the highest that was known, and never above 100% without a word."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bc2.train.speed.mfu import IMPOSSIBLE, impossible, mfu_text, of_highest_peak


def test_a_share_above_one_is_told_with_the_words_that_it_cannot_be() -> None:
    assert mfu_text(0.4567, 1) == "45.7%"
    assert mfu_text(1.0) == "100%"
    assert mfu_text(1.184) == f"118% ({IMPOSSIBLE})"
    assert mfu_text(2.0, 1, "why") == "200.0% (why)"


@pytest.mark.parametrize(
    ("share", "expected"),
    [(None, False), (math.nan, False), (1.0, False), (1 + 1e-12, False), (1.001, True)],
)
def test_what_cannot_be(share: float | None, expected: bool) -> None:
    assert impossible(share) is expected


def test_steps_before_the_peak_was_raised_are_shares_of_the_raised_one() -> None:
    # The peak was 4; the third step reached 5, which is the peak from there on.
    flops, logged = np.array([2.0, 4.0, 5.0, 4.0]), np.array([0.5, 1.0, 1.0, 0.8])
    np.testing.assert_allclose(of_highest_peak(flops, logged), [0.4, 0.8, 1.0, 0.8])


def test_rows_without_flops_stay_as_logged() -> None:
    logged = np.array([0.5, 1.2, math.nan])
    np.testing.assert_array_equal(of_highest_peak(np.full(3, math.nan), logged), logged)
    mixed = of_highest_peak(np.array([math.nan, 6.0, 3.0]), np.array([0.5, 0.6, 0.6]))
    np.testing.assert_allclose(mixed, [0.5, 0.6, 0.3])


def test_an_old_log_keeps_its_shares_above_one() -> None:
    logged = of_highest_peak(np.array([11.0, 13.0]), np.array([1.1, 1.3]))
    np.testing.assert_allclose(logged, [1.1, 1.3])
