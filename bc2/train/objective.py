"""Objectives: what training minimises. Each is a pure function of a model and a batch.

It returns *sums* over supervised tokens, samples or pairs, never means: they are divided once,
by a weight of the whole optimizer step, so that accumulated micro-batches of unequal length have
the weights that they would have in one full batch. The batch is this rank's view of it; what to
do where ranks share its tokens is in `bc2.train.sample_sums`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bc2.data.loader import Batch
from bc2.model.transfer import to_device
from bc2.model.transformer import Transformer
from bc2.train.speed.clock import Clock


@dataclass(frozen=True)
class Loss:
    """Sums over one micro-batch, or over this rank's tokens of it."""

    total: Tensor
    """Scalar, differentiable: the sum to minimise."""
    sums: Mapping[str, Tensor]
    """Detached scalars to log: sums too, of which the loop makes means."""


class Objective(Protocol):
    """``objective(model, batch, clock) -> Loss``; the clock times forward and head."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss: ...


def hidden_states(model: Transformer, batch: Batch, clock: Clock) -> Tensor:
    """The last hidden states of this rank's tokens of a micro-batch: [T own, D]."""
    tokens = to_device(torch.from_numpy(batch.tokens), model.device).flatten()
    boundaries = to_device(torch.from_numpy(batch.cu_seqlens), model.device)
    with clock.part("forward"):
        hidden: Tensor = model(tokens, boundaries, batch.max_seqlen)
    return hidden
