"""The objective of supervised fine-tuning: the log-probability of the answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bc2.align.samples.packed_batch import WEIGHT
from bc2.data.loader import Batch
from bc2.model.transfer import to_device
from bc2.model.transformer import Transformer
from bc2.train.objective import Loss, hidden_states
from bc2.train.speed.clock import Clock


@dataclass(frozen=True)
class Answers:
    """Cross-entropy of the labels, each counted by its weight; no max-z.

    Calling it raises ValueError if the model has no language head.
    """

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        clock = clock or Clock()
        head, device = model.language_head, model.device
        labels = torch.from_numpy(batch.labels).flatten()  # the head checks them on the host
        hidden = hidden_states(model, batch, clock)
        with clock.part("head"):
            if WEIGHT not in batch.token_fields:
                found = head.loss(hidden, labels, z_weight=0.0)
                return Loss(found.loss_sum, {"ce": found.ce_sum})
            weights = to_device(torch.from_numpy(batch.token_fields[WEIGHT]), device).flatten()
            return _weighted(-head.log_probs(hidden, to_device(labels, device)).log_probs, weights)


def _weighted(nats: Tensor, weights: Tensor) -> Loss:
    """The loss of labels [T] that count differently."""
    return Loss((nats * weights.to(nats.dtype)).sum(), {"ce": nats.detach().double().sum()})
