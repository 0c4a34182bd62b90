"""The objective of reward models: scores at the last token of each answer, compared by pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bc2.align.pairs.right_order import right_order
from bc2.align.reward.reward_loss import absolute_loss, ranking_loss
from bc2.data.loader import IGNORED, Batch
from bc2.model.transfer import to_device
from bc2.model.transformer import Transformer
from bc2.train.objective import Loss, hidden_states
from bc2.train.sample_sums import counted_once, sum_by_sample
from bc2.train.speed.clock import Clock

#: The sample fields of the score that an answer is to have, and of α, how much that counts.
TARGET, ALPHA = "target", "alpha"


def answer_scores(model: Transformer, batch: Batch, clock: Clock | None = None) -> Tensor:
    """The score of each sample, at its one label: [N] in fp64, the same on all sequence ranks.

    Raises:
        ValueError: the model has no scalar head.
    """
    if model.config.head != "scalar":
        raise ValueError(f"a model with a {model.config.head} head gives no scores")
    clock = clock or Clock()
    hidden = hidden_states(model, batch, clock)
    with clock.part("head"):
        known = to_device(torch.from_numpy(batch.labels.reshape(-1) != IGNORED), hidden.device)
        values = model.values(hidden).double()
        # Not by a product: the value of another token may be infinite.
        return sum_by_sample(torch.where(known, values, 0.0), batch)


@dataclass(frozen=True)
class PairwiseScores:
    """The ranking loss of pairs and, where answers have targets, the absolute loss by weight."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        scores = answer_scores(model, batch, clock).view(-1, 2)
        chosen, rejected = scores.unbind(dim=1)
        ranking = ranking_loss(chosen, rejected)
        targets, alpha = (
            to_device(torch.from_numpy(batch.sample_fields[name]), scores.device).view(-1, 2)
            for name in (TARGET, ALPHA)
        )
        absolute = absolute_loss(scores, targets)
        loss = (ranking + alpha[:, 0] * absolute).sum()
        with torch.no_grad():
            weighed = torch.where(alpha[:, 0] > 0, absolute, 0.0)
            sums = {
                "ranking": ranking.sum(),
                "absolute": weighed.sum(),
                "accuracy": right_order(chosen - rejected).sum(),
                "score_margin": (chosen - rejected).sum(),
            }
        return Loss(
            counted_once(loss, batch),
            {name: counted_once(value.detach(), batch) for name, value in sums.items()},
        )
