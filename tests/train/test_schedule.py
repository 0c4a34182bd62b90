"""The learning rate against its definition, and speeds against a peak."""

from __future__ import annotations

import math

import pytest

from bc2.train.schedule import Speed, learning_rate


def at(step: int) -> float:
    return learning_rate(step, peak=2.0, warmup=10, total=111, min_ratio=0.1)


def test_warmup_is_linear_and_reaches_the_peak() -> None:
    assert [at(s) for s in range(10)] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert at(10) == pytest.approx(2.0)


def test_cosine_meets_its_middle_and_its_end() -> None:
    assert at(60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert at(110) == pytest.approx(0.2)
    assert at(500) == pytest.approx(0.2)


def test_shape_of_the_cosine() -> None:
    for step in range(10, 111):
        angle = math.pi * (step - 10) / 100
        assert at(step) == pytest.approx(0.2 + 1.8 * (1 + math.cos(angle)) / 2)


def test_a_step_above_the_peak_raises_it() -> None:
    raised: list[float] = []
    speed = Speed(100, 6.0, peak_flops=1200.0, raised=raised.append)
    assert speed.of(1.0) == {"tokens_per_s": 100.0, "flops": 600.0, "mfu": 0.5}
    assert speed.of(0.4) == {"tokens_per_s": 250.0, "flops": 1500.0, "mfu": 1.0}
    assert speed.of(1.0)["mfu"] == pytest.approx(0.4)
    assert speed.of(0.5)["mfu"] == pytest.approx(0.8)
    assert (speed.peak_flops, raised) == (1500.0, [1500.0])
