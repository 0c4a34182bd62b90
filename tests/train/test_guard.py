"""What every guard forbids: losses and gradient norms that are not finite, of every model."""

from __future__ import annotations

import math

import pytest

from bc2.train.guard import Guard
from bc2.train.run_config import GuardConfig

STEP = {
    "loss": 1.0, "margin": 0.5, "grad_norm": 2.0, "lr": 1e-3, "critic.loss": 3.0,
    "critic.error": math.nan, "critic.grad_norm": 4.0,
}  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("loss", "loss is {}"),
        ("grad_norm", "gradient norm is {}"),
        ("critic.loss", "critic loss is {}"),
        ("critic.grad_norm", "critic gradient norm is {}"),
        ("margin", "margin is {}"),
    ],
)
def test_what_must_be_finite(name: str, said: str, value: float) -> None:
    guard = Guard(GuardConfig(), guarded=("margin",))
    assert guard.judge({**STEP, name: value}) == said.format(value)


def test_what_nobody_named_may_be_anything() -> None:
    assert Guard(GuardConfig()).judge({**STEP, "margin": math.nan}) is None


def test_its_state_is_what_it_remembers() -> None:
    guard = Guard(GuardConfig())
    guard.restore([1.0, 2.0], 3)
    assert (list(guard.recent), guard.bad) == ([1.0, 2.0], 3)
    guard.accept(STEP)
    assert guard.bad == 0
