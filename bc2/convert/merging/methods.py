"""Ways to make one model of several, each from its paper: rows of every model in, rows of one out.

All take the same part of one tensor of each model, in fp32 and of any shape, and return that part
of the merged tensor. What a method must know of more than this part is a number that it is given:
see `bc2.convert.merging.measures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import acos, sin

from torch import Tensor

#: From this cosine on an arc is its chord: the sine of a smaller angle divides away all digits.
STRAIGHT = 0.9995

#: Below this 1 + (N − 1) cos θ, Model Stock divides by what is noise.
LEAST_DENOMINATOR = 0.05


def linear(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ θᵢ: a soup (Wortsman et al. 2022, arXiv 2203.05482); uniform where all wᵢ = 1 / N."""
    merged = models[0] * weights[0]
    for model, weight in zip(models[1:], weights[1:], strict=True):
        merged.add_(model, alpha=weight)
    return merged


def task_arithmetic(
    base: Tensor, models: Sequence[Tensor], weights: Sequence[float], scale: float
) -> Tensor:
    """θ₀ + λ Σ wᵢ (θᵢ − θ₀): task vectors added, or subtracted (Ilharco et al. 2023, arXiv
    2212.04089, section 2)."""
    merged = base.clone()
    for model, weight in zip(models, weights, strict=True):
        merged.add_(model - base, alpha=scale * weight)
    return merged


def ties(
    base: Tensor,
    models: Sequence[Tensor],
    thresholds: Sequence[float],
    weights: Sequence[float],
    scale: float,
) -> Tensor:
    """θ₀ + λ τ, where τ is the mean of those trimmed task vectors that have the elected sign
    (Yadav et al. 2023, arXiv 2306.01708, algorithm 1).

    1. Trim: of τᵢ = θᵢ − θ₀ what is smaller than its threshold becomes 0.
    2. Elect: the sign of Σ wᵢ τᵢ, for each number.
    3. Merge: Σ wᵢ τᵢ / Σ wᵢ over those i whose τᵢ has that sign; 0 where there are none.

    Args:
        thresholds: of each model, the magnitude of the smallest number that is kept.
        weights: more than 0; the paper has 1 for each.
    """
    trimmed = [model - base for model in models]
    for vector, threshold in zip(trimmed, thresholds, strict=True):
        vector.masked_fill_(vector.abs() < threshold, 0.0)
    elected = linear(trimmed, weights).sign_()
    total, share = base.new_zeros(base.shape), base.new_zeros(base.shape)
    for vector, weight in zip(trimmed, weights, strict=True):
        # Of the same sign, and not 0.
        agrees = (vector * elected > 0).to(base.dtype)
        total.addcmul_(vector, agrees, value=weight)
        share.add_(agrees, alpha=weight)
    return base.add(total.div_(share.masked_fill_(share == 0, 1.0)), alpha=scale)


def slerp(first: Tensor, second: Tensor, t: float, cosine: float) -> Tensor:
    """(sin((1 − t) Ω) θ₁ + sin(t Ω) θ₂) / sin Ω, at the angle Ω between both (Shoemake 1985,
    section 3.3); straight where they have one direction.

    Args:
        t: 0 is the first, 1 the second.
        cosine: of Ω, between both tensors as wholes.
    """
    return linear((first, second), slerp_weights(t, cosine))


def slerp_weights(t: float, cosine: float) -> tuple[float, float]:
    """What `slerp` multiplies both with.

    Raises:
        ValueError: they are opposite, so that no arc between them is the shortest.
    """
    if cosine > STRAIGHT:
        return 1.0 - t, t
    if cosine < -STRAIGHT:
        raise ValueError(f"the cosine between them is {cosine:.4f}: opposites have no arc")
    angle = acos(cosine)
    return sin((1.0 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)


def model_stock(base: Tensor, models: Sequence[Tensor], factor: float) -> Tensor:
    """t θ̄ + (1 − t) θ₀: the mean of the models, drawn to their base (Jang et al. 2024, arXiv
    2403.19522, equation 5).

    Args:
        factor: t, of the whole tensor.
    """
    share = factor / len(models)
    return task_arithmetic(base, models, [1.0] * len(models), share)


def model_stock_factor(cosine: float, count: int) -> float:
    """t = N cos θ / (1 + (N − 1) cos θ).

    Args:
        cosine: the mean of cos θ over all pairs of θᵢ − θ₀.
        count: N, the models.

    Raises:
        ValueError: the denominator is nearly 0, and t could be anything.
    """
    denominator = 1.0 + (count - 1) * cosine
    if denominator < LEAST_DENOMINATOR:
        raise ValueError(
            f"1 + (N − 1) cos θ is {denominator:.3f}, with N = {count} and cos θ = {cosine:.4f}"
        )
    return count * cosine / denominator
