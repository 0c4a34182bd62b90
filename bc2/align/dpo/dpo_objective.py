"""The objective of direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bc2.align.dpo.dpo_config import DpoConfig
from bc2.align.dpo.preference_losses import dpo_loss, ipo_loss, length_normalised, sft_loss
from bc2.align.pairs.right_order import right_order
from bc2.data.loader import IGNORED, Batch
from bc2.model.adapters import without_adapters
from bc2.model.transfer import to_device
from bc2.model.transformer import Transformer
from bc2.train.objective import Loss, hidden_states
from bc2.train.sample_sums import counted_once, sum_by_sample
from bc2.train.speed.clock import Clock

#: The sample field with the log-probability of each answer under the reference, in nats: fp64 [N].
REFERENCE = "reference"


def answer_log_probs(model: Transformer, batch: Batch, clock: Clock | None = None) -> Tensor:
    """The log-probability of each sample's answer in nats, and its tokens: [N, 2] in fp64.

    Each token's is computed in fp32 or wider, and they are summed in fp64.
    """
    clock = clock or Clock()
    hidden = hidden_states(model, batch, clock)
    with clock.part("head"):
        labels = to_device(torch.from_numpy(batch.labels).flatten(), hidden.device)
        found = model.language_head.log_probs(hidden, labels).log_probs.double()
        return sum_by_sample(torch.stack([found, (labels != IGNORED).double()], dim=1), batch)


def reference_of_batch(model: Transformer, batch: Batch) -> Tensor:
    """The log-probability of each answer under the reference, without a gradient: fp64 [N].

    That is what the batch says; where it says nothing, that of the model without its adapters.
    """
    if REFERENCE in batch.sample_fields:
        stored = batch.sample_fields[REFERENCE].astype(np.float64)
        return to_device(torch.from_numpy(stored), model.device)
    with torch.no_grad(), without_adapters(model):
        return answer_log_probs(model, batch)[:, 0]


def preference_losses(ratios: Tensor, lengths: Tensor, config: DpoConfig) -> tuple[Tensor, Tensor]:
    """Of each pair the loss [P], and the rewards of both answers [P, 2].

    Args:
        ratios: [P, 2], log-ratios of the chosen and the rejected answer.
        lengths: [P, 2], their tokens.
    """
    if config.loss == "length_normalised":
        ratios = length_normalised(ratios, lengths)
    h = ratios[:, 0] - ratios[:, 1]
    if config.loss == "ipo":
        loss = ipo_loss(h, config.beta)
    else:
        loss = dpo_loss(h, config.beta, config.label_smoothing)
    return loss, config.beta * ratios.detach()


@dataclass(frozen=True)
class PreferredAnswers:
    """The loss of pairs, in nats (IPO's in nats²), and of the chosen answers by weight."""

    config: DpoConfig

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        clock = clock or Clock()
        with clock.part("reference"):
            reference = reference_of_batch(model, batch).view(-1, 2)
        log_probs, lengths = answer_log_probs(model, batch, clock).unbind(dim=1)
        log_probs, lengths = log_probs.view(-1, 2), lengths.detach().view(-1, 2)
        preference, rewards = preference_losses(log_probs - reference, lengths, self.config)
        loss = preference
        if self.config.sft_weight:
            loss = loss + self.config.sft_weight * sft_loss(log_probs[:, 0], lengths[:, 0])
        with torch.no_grad():
            margins = rewards[:, 0] - rewards[:, 1]
            each = (log_probs / lengths).sum(dim=0)
            sums = {
                "preference": preference.sum(),
                "accuracy": right_order(margins).sum(),
                "reward_margin": margins.sum(),
                "chosen_reward": rewards[:, 0].sum(),
                "rejected_reward": rewards[:, 1].sum(),
                "chosen_log_prob": each[0],
                "rejected_log_prob": each[1],
            }
        return Loss(
            counted_once(loss.sum(), batch),
            {name: counted_once(value.detach(), batch) for name, value in sums.items()},
        )
