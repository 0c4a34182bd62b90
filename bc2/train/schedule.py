"""Learning rate as a function of the step."""

from __future__ import annotations

import math


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
