"""Objectives: what training minimises. Each is a pure function of a model and a batch.

It returns *sums* over supervised tokens, never means: the loop divides once by the
tokens of the whole optimizer step, so that accumulated micro-batches of unequal
length have the weights that they would have in one full batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bc2.data.loader import Batch
from bc2.model.transformer import Transformer
from bc2.train.clock import Clock


@dataclass(frozen=True)
class Loss:
    """Sums over the supervised tokens of one micro-batch."""

    total: Tensor
    """Scalar, differentiable: the sum to minimise, in nats."""
    sums: Mapping[str, Tensor]
    """Detached scalars to log; each is divided by the step's tokens too."""


class Objective(Protocol):
    """``objective(model, batch, clock) -> Loss``; the clock times forward and head."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss: ...
