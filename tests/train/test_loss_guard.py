"""Which steps the guard of pretraining forbids."""

from __future__ import annotations

import math

import pytest

from bc2.train.loss_guard import LossGuard
from bc2.train.run_config import LossGuardConfig


def step(loss: float, norm: float = 1.0) -> dict[str, float]:
    return {"loss": loss, "ce": 1.0, "grad_norm": norm, "clipped": False, "lr": 1e-3}


@pytest.fixture
def guard() -> LossGuard:
    return LossGuard(LossGuardConfig(window=4, max_rise=1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_bad_from_the_first_step(guard: LossGuard, value: float) -> None:
    assert "loss" in str(guard.judge(step(value, 1.0)))
    assert "gradient" in str(guard.judge(step(1.0, value)))


def test_no_spike_before_the_window_is_full(guard: LossGuard) -> None:
    for _ in range(3):
        assert guard.judge(step(100.0, 1.0)) is None
        guard.accept(step(1.0))
    guard.accept(step(1.0))
    assert "above the median" in str(guard.judge(step(2.01, 1.0)))
    assert guard.judge(step(1.99, 1.0)) is None


def test_window_forgets_and_state_round_trips(guard: LossGuard) -> None:
    for loss in (9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0):
        guard.accept(step(loss))
    assert guard.judge(step(2.5, 1.0)) is not None
    other = LossGuard(guard.config)
    other.restore(list(guard.recent), guard.bad)
    assert other == guard
