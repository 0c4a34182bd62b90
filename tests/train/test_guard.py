"""Which steps the guard forbids."""

from __future__ import annotations

import math

import pytest

from bc2.train.guard import Guard
from bc2.train.pretrain.pretrain_config import LossGuardConfig


@pytest.fixture
def guard() -> Guard:
    return Guard(LossGuardConfig(window=4, max_rise=1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_bad_from_the_first_step(guard: Guard, value: float) -> None:
    assert "loss" in str(guard.judge(value, 1.0))
    assert "gradient" in str(guard.judge(1.0, value))


def test_no_spike_before_the_window_is_full(guard: Guard) -> None:
    for _ in range(3):
        assert guard.judge(100.0, 1.0) is None
        guard.accept(1.0)
    guard.accept(1.0)
    assert "above the median" in str(guard.judge(2.01, 1.0))
    assert guard.judge(1.99, 1.0) is None


def test_window_forgets_and_state_round_trips(guard: Guard) -> None:
    for loss in (9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0):
        guard.accept(loss)
    assert guard.judge(2.5, 1.0) is not None
    other = Guard(guard.config)
    other.restore(list(guard.recent), guard.bad)
    assert other == guard
