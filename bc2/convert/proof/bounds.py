"""How far a program may be from ours before it is another model."""

from __future__ import annotations

from dataclasses import dataclass

from bc2.convert.exporting.target import Dtype


@dataclass(frozen=True)
class Bounds:
    """What is compared, and how closely."""

    logits: float | None
    """The largest difference of a log-probability, in nats; None: perplexity alone counts."""
    perplexity: float
    """The largest relative difference."""


_PLAIN = {"fp32": Bounds(1e-4, 1e-4), "bf16": Bounds(1e-3, 1e-3), "fp16": Bounds(1e-3, 1e-3)}

#: Numbers of few bits cannot be the same ones.
FEW_BITS = Bounds(None, 1e-2)


def bounds_of(dtype: Dtype) -> Bounds:
    """For weights that are written in a type."""
    return _PLAIN.get(dtype, FEW_BITS)
