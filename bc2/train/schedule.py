"""When a run evaluates, saves, logs and ends, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bc2.errors import RecipeError
from bc2.train.duration import MOST, Duration
from bc2.train.run_config import RunConfig, ScheduleShape

if TYPE_CHECKING:
    from bc2.train.stream import StepData


@dataclass(frozen=True)
class Schedule:
    """When a run evaluates, saves, logs and ends, in optimizer steps."""

    total: int
    checkpoint_every: int
    eval_every: int
    log_every: int
    learning_rate: Callable[..., float]
    """``learning_rate(step, peak=...)``: of a step, from 0."""

    @classmethod
    def of(cls, config: RunConfig, epoch_tokens: int, total_tokens: int | None = None) -> Schedule:
        """The schedule of a run.

        Args:
            epoch_tokens: tokens of one pass over its training data.
            total_tokens: of a run whose length is in epochs, and these are not equally long.

        Raises:
            RecipeError: it is longer than can be counted, or its warm-up does not end.
        """

        def steps(length: Duration) -> int:
            return length.steps(batch_tokens=config.step_tokens, epoch_tokens=epoch_tokens)

        total, warmup = steps(Duration.parse(config.length)), steps(config.schedule.warmup_length)
        if total_tokens is not None:
            total = max(1, math.ceil(total_tokens / config.step_tokens))
        _check_lengths(config, total, warmup)
        return cls(
            total=total,
            checkpoint_every=steps(Duration.parse(config.checkpoint_every)),
            eval_every=steps(Duration.parse(config.eval_every)),
            log_every=config.log_every,
            learning_rate=partial(
                learning_rate,
                warmup=warmup,
                total=total,
                shape=config.schedule.shape,
                min_ratio=config.schedule.min_ratio,
            ),
        )

    def is_logged(self, step: int) -> bool:
        """Whether a step, counted from 1, gets its rows."""
        return step % self.log_every == 0 or step == self.total


def _check_lengths(config: RunConfig, total: int, warmup: int) -> None:
    if total * config.step_tokens > MOST:
        raise RecipeError(
            f"{config.length} of this data are more tokens than can be counted ({MOST:,})",
            where=f"{config.section}.length",
            todo="shorten the run",
        )
    if warmup >= total:
        raise RecipeError(
            f"the warm-up of {warmup} steps does not end within the run of {total}",
            where=f"{config.section}.schedule.warmup",
            todo="shorten the warm-up or lengthen the run",
        )


@dataclass
class Speed:
    """What turns seconds into MFU, which is never above 1."""

    flops_per_token: float
    """Of the matrix products, through all models of a step."""
    peak_flops: float
    """Of all ranks together, as far as it is known."""
    raised: Callable[[float], None]
    """Told of a higher peak."""
    flops_per_pair: float = 0.0
    """Of attention, for each pair of a token and a token of its row."""

    def flops(self, step: StepData) -> float:
        """Model FLOPs of this rank's part of a step."""
        products = self.flops_per_token * step.computed
        return products + self.flops_per_pair * step.pairs + step.further_flops

    def of(self, seconds: float, tokens: int, flops: float) -> dict[str, float]:
        """The speed of a step that took so long. One above the peak proves that it is higher.

        Args:
            tokens: that went through the models, on all ranks.
            flops: of the step, on all ranks.
        """
        reached = flops / seconds
        if reached > self.peak_flops:
            self.peak_flops = reached
            self.raised(reached)
        return {
            "tokens_per_s": tokens / seconds, "flops": reached, "mfu": reached / self.peak_flops,
        }  # fmt: skip


def learning_rate(
    step: int, *, peak: float, warmup: int, total: int, shape: ScheduleShape, min_ratio: float
) -> float:
    """Linear warm-up to `peak`, then down to ``min_ratio * peak``, or constant.

    With p from 0 at the first step after the warm-up to 1 at the last of the run, a cosine is
    min + (peak - min) (1 + cos πp) / 2 (Baichuan 2 §2.5) and a line min + (peak - min) (1 - p).

    Args:
        step: the optimizer step about to be made, from 0.
        warmup: steps of warm-up; step ``warmup - 1`` is the first at `peak`. 0: none.
        total: steps of the whole run; the last, ``total - 1``, is at the minimum, unless it is
            the only one after the warm-up.
        shape: a constant rate stays at `peak` whatever `min_ratio`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if shape == "constant":
        return peak
    span = max(1, total - 1 - warmup)
    progress = min(1.0, (step - warmup) / span)
    above = 1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (min_ratio + (1 - min_ratio) * above)
