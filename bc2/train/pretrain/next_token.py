"""The objective of pretraining: the next token, and small logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bc2.data.loader import Batch
from bc2.model.transformer import Transformer
from bc2.train.objective import Loss, hidden_states
from bc2.train.speed.clock import Clock


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy plus max-z: L = CE + z_weight * z^2 (Baichuan 2, equation 1).

    Calling it raises ValueError if the model has no language head.
    """

    z_weight: float

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        clock = clock or Clock()
        head = model.language_head
        labels = torch.from_numpy(batch.labels).flatten()  # the head checks them on the host
        hidden = hidden_states(model, batch, clock)
        with clock.part("head"):
            parts = head.loss(hidden, labels, z_weight=self.z_weight)
        return Loss(parts.loss_sum, {"ce": parts.ce_sum, "z": parts.z_sum})
