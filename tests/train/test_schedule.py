"""The learning rate against its definition, and speeds against a peak."""

from __future__ import annotations

import math
import os
import signal
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.errors import Interrupted, RecipeError
from bc2.train.log_rows import METRICS, read_rows
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.run_config import ScheduleConfig, ScheduleShape
from bc2.train.schedule import Schedule, Speed, learning_rate

SHAPES: tuple[ScheduleShape, ...] = get_args(ScheduleShape)


def at(step: int, shape: ScheduleShape = "cosine", warmup: int = 10) -> float:
    total = 101 + warmup
    return learning_rate(step, peak=2.0, warmup=warmup, total=total, shape=shape, min_ratio=0.125)


@pytest.mark.parametrize("shape", SHAPES)
def test_warmup_is_linear_and_reaches_the_peak(shape: ScheduleShape) -> None:
    assert [at(step, shape) for step in range(10)] == [2.0 * (step + 1) / 10 for step in range(10)]
    assert at(9, shape) == at(10, shape) == 2.0


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize(
    ("shape", "quarter", "middle", "last"),
    [
        ("cosine", 0.25 + 1.75 * (2 + math.sqrt(2)) / 4, 1.125, 0.25),
        ("linear", 0.25 + 1.75 * 0.75, 1.125, 0.25),
        ("constant", 2.0, 2.0, 2.0),
    ],
)
def test_the_first_the_middle_and_the_last_step(
    shape: ScheduleShape, warmup: int, quarter: float, middle: float, last: float
) -> None:
    """100 steps from the peak to a minimum of an eighth: numbers that binary has exactly."""
    assert at(warmup, shape, warmup) == 2.0
    assert at(warmup + 25, shape, warmup) == pytest.approx(quarter, rel=1e-15)
    assert at(warmup + 50, shape, warmup) == pytest.approx(middle, rel=1e-15)
    assert at(warmup + 100, shape, warmup) == last
    assert at(warmup + 500, shape, warmup) == last


def test_every_step_of_the_cosine_and_the_line() -> None:
    for step in range(10, 111):
        angle = math.pi * (step - 10) / 100
        assert at(step) == pytest.approx(0.25 + 1.75 * (1 + math.cos(angle)) / 2, rel=1e-15)
        assert at(step, "linear") == pytest.approx(2 - 1.75 * (step - 10) / 100, rel=1e-15)


@given(st.integers(0, 3000), st.floats(1e-8, 1), st.floats(0, 1))
def test_the_cosine_has_the_bits_that_it_always_had(
    step: int, peak: float, min_ratio: float
) -> None:
    now = learning_rate(step, peak=peak, warmup=0, total=2000, shape="cosine", min_ratio=min_ratio)
    progress = min(1.0, step / 1999)
    cosine = 1 + math.cos(math.pi * progress)
    assert now == peak * (min_ratio + (1 - min_ratio) * 0.5 * cosine)


@given(
    st.sampled_from(SHAPES), st.integers(0, 50), st.integers(2, 300), st.floats(1e-6, 1),
    st.sampled_from([0.0, 0.1, 0.5, 0.99]),
)  # fmt: skip
def test_it_rises_to_the_peak_and_never_again(
    shape: ScheduleShape, warmup: int, after: int, peak: float, min_ratio: float
) -> None:
    total = warmup + after
    rates = [
        learning_rate(step, peak=peak, warmup=warmup, total=total, shape=shape, min_ratio=min_ratio)
        for step in range(total)
    ]
    assert all(one < next_ for one, next_ in pairwise(rates[:warmup]))
    assert rates[warmup] == pytest.approx(peak, rel=1e-15)
    falling = rates[warmup:]
    if shape == "constant":
        assert set(falling) == {peak}
    else:
        assert all(one > next_ for one, next_ in pairwise(falling))
        assert rates[-1] == peak * min_ratio


def config(**changes: object) -> PretrainConfig:
    settings = {"length": "8 steps", "batch_tokens": 64, "micro_batch": 1, "sequence_length": 32}
    return PretrainConfig.model_validate({**settings, **changes})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warmup", ["0 steps", "0 tokens", "0 epochs"])
def test_a_run_without_warm_up_begins_at_the_peak(shape: ScheduleShape, warmup: str) -> None:
    schedule = Schedule.of(config(schedule=ScheduleConfig(shape=shape, warmup=warmup)), 640)
    highest = config().optimizer.learning_rate
    assert schedule.learning_rate(0, peak=highest) == highest
    last = schedule.learning_rate(7, peak=highest)
    assert last == pytest.approx(highest if shape == "constant" else 2e-5)
    only = Schedule.of(config(length="1 step", schedule=ScheduleConfig(warmup=warmup)), 640)
    assert only.learning_rate(0, peak=highest) == highest


def test_lengths_in_every_unit_become_steps() -> None:
    """A step is 64 tokens and an epoch ten steps."""
    settings = config(
        length="3 epochs", checkpoint_every="65 tokens", eval_every="0.5 epochs", log_every=7,
        schedule=ScheduleConfig(warmup="640 tokens"),
    )  # fmt: skip
    schedule = Schedule.of(settings, epoch_tokens=640)
    found = schedule.total, schedule.checkpoint_every, schedule.eval_every, schedule.log_every
    assert found == (30, 2, 5, 7)
    rates = [schedule.learning_rate(step, peak=1.0) for step in (9, 10, 11)]
    assert rates[0] == rates[1] > rates[2]
    assert [step for step in range(1, 31) if schedule.is_logged(step)] == [7, 14, 21, 28, 30]


def test_a_warm_up_or_a_length_without_end_is_refused() -> None:
    long = config(schedule=ScheduleConfig(warmup="8 steps"))
    with pytest.raises(RecipeError, match="8 steps does not end within the run of 8") as caught:
        Schedule.of(long, epoch_tokens=640)
    assert caught.value.where == "pretrain.schedule.warmup"
    endless = config(length="1_000_000_000 epochs")
    with pytest.raises(RecipeError, match="more tokens than can be counted") as caught:
        Schedule.of(endless, epoch_tokens=2**40)
    assert caught.value.where == "pretrain.length"


@pytest.mark.parametrize(("shape", "warmup"), [("linear", "4 steps"), ("constant", "0 steps")])
def test_a_run_that_is_stopped_half_way_goes_on_along_its_schedule(
    train, straight, at_sample, shape: ScheduleShape, warmup: str
) -> None:
    """To the bits of the undisturbed run. Of the cosine all tests of resuming say it."""
    settings = [f"pretrain.schedule.shape={shape}", f"pretrain.schedule.warmup={warmup}"]
    at_sample({56: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(Interrupted, match="stopped at step 7 of 12"):
        train(*settings)
    artifact = train(*settings)
    assert artifact.digest == straight(*settings).digest
    rows = [row for row in read_rows(artifact.file(METRICS)) if row["event"] == "step"]
    peak, steps = 3e-3, int(warmup[0])
    assert [row["lr"] for row in rows] == [
        learning_rate(step, peak=peak, warmup=steps, total=12, shape=shape, min_ratio=0.1)
        for step in range(12)
    ]


def test_a_step_above_the_peak_raises_it() -> None:
    raised: list[float] = []
    speed = Speed(6.0, peak_flops=1200.0, raised=raised.append)
    assert speed.of(1.0, 100, 600.0) == {"tokens_per_s": 100.0, "flops": 600.0, "mfu": 0.5}
    assert speed.of(0.4, 100, 600.0) == {"tokens_per_s": 250.0, "flops": 1500.0, "mfu": 1.0}
    assert speed.of(1.0, 100, 600.0)["mfu"] == pytest.approx(0.4)
    assert speed.of(0.5, 100, 600.0)["mfu"] == pytest.approx(0.8)
    assert (speed.peak_flops, raised) == (1500.0, [1500.0])
