"""When a run evaluates, saves, logs and ends, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When a run evaluates, saves, logs and ends, in optimizer steps."""

    total: int
    checkpoint_every: int
    eval_every: int
    log_every: int
    learning_rate: Callable[[int], float]
    clip_norm: float

    def is_logged(self, step: int) -> bool:
        """Whether a step, counted from 1, gets its rows."""
        return step % self.log_every == 0 or step == self.total


@dataclass
class Speed:
    """What turns seconds into MFU, which is never above 1."""

    batch_tokens: int
    flops_per_token: float
    peak_flops: float
    """Of all ranks together, as far as it is known."""
    raised: Callable[[float], None]
    """Told of a higher peak."""

    def of(self, seconds: float) -> dict[str, float]:
        """The speed of a step that took so long. One above the peak proves that it is higher."""
        rate = self.batch_tokens / seconds
        flops = rate * self.flops_per_token
        if flops > self.peak_flops:
            self.peak_flops = flops
            self.raised(flops)
        return {"tokens_per_s": rate, "flops": flops, "mfu": flops / self.peak_flops}


def learning_rate(step: int, *, peak: float, warmup: int, total: int, min_ratio: float) -> float:
    """Linear warm-up to `peak`, then a cosine to ``min_ratio * peak`` (Baichuan 2 §2.5).

    Args:
        step: the optimizer step about to be made, from 0.
        warmup: steps of warm-up; step ``warmup - 1`` is the first at `peak`.
        total: steps of the whole run; the last, ``total - 1``, is at the minimum.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    span = max(1, total - 1 - warmup)
    progress = min(1.0, (step - warmup) / span)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
