"""What direct preference optimisation measures on held-out pairs, and the model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bc2.align.dpo.dpo_config import DpoConfig
from bc2.align.dpo.dpo_objective import answer_log_probs, preference_losses, reference_of_batch
from bc2.align.dpo.own_answers import OwnAnswers
from bc2.align.pairs.in_turns import in_turns
from bc2.align.pairs.packed_pairs import PackedPairs
from bc2.align.pairs.preference_tables import preference_tables
from bc2.align.pairs.right_order import right_order
from bc2.data.loader import Batch, read_ahead
from bc2.model.transformer import Transformer
from bc2.train.engines.base import Engine
from bc2.train.measured import Measured
from bc2.train.stream import with_timeout

#: Batches read ahead.
_AHEAD = 4

#: Answers whose log-probability is this much lower, in nats a token, have fallen: less is rounding.
_FALLEN = 0.02

#: Answers that are this many times as long as the first ones have grown.
_GROWN = 1.25


def policy_and_reference(model: Transformer, batch: Batch) -> Tensor:
    """Log-probability, tokens and the reference's log-probability of each answer: [N, 3]."""
    reference = reference_of_batch(model, batch)
    return torch.cat([answer_log_probs(model, batch), reference[:, None]], dim=1)


@dataclass(frozen=True)
class HeldoutPreferences:
    """Evaluations of the model that an engine trains; a function of its weights, and of how long
    its first answers were."""

    engine: Engine
    rows: PackedPairs
    """Their fields have the reference's log-probabilities, or it is the model without adapters."""
    sources: tuple[str, ...]
    config: DpoConfig
    answers: OwnAnswers
    check: Callable[[], None]
    """Called between batches and tokens; if it raises, the evaluation is abandoned."""

    def __call__(self) -> Measured:
        """Loss, accuracy, rewards and log-probabilities; answers; and tables of the pairs."""
        numbers, units = self._numbers()
        log_probs, lengths, reference = np.moveaxis(numbers, 2, 0)
        ratios = torch.from_numpy(log_probs - reference)
        loss, rewards = preference_losses(ratios, torch.from_numpy(lengths), self.config)
        margins = (rewards[:, 0] - rewards[:, 1]).numpy()
        each = (log_probs / lengths).mean(axis=0)
        written = self.answers(self.engine, self.check)
        tokens = written.mean_tokens
        facts = {
            "heldout_loss": float(loss.mean()),
            "heldout_accuracy": float(right_order(margins).mean()),
            "heldout_reward_margin": float(margins.mean()),
            "heldout_chosen_log_prob": float(each[0]),
            "heldout_rejected_log_prob": float(each[1]),
            "answer_tokens": tokens,
            "heldout_pairs": len(margins),
        }
        text = f"held-out pairs in order {facts['heldout_accuracy']:.1%}, "
        text += f"loss {facts['heldout_loss']:.4f}, margin {facts['heldout_reward_margin']:.4f}"
        if not np.isfinite(margins).all():
            return Measured(facts, text, written.samples)  # which says so
        table, whole = self.rows.pairs.table[units], lengths.astype(np.int32)
        tables = preference_tables(table, rewards.numpy(), whole, self.sources)
        warnings = dict(self._warnings(ratios.numpy(), lengths, margins, tokens))
        return Measured(facts, text, written.samples, {"preference": tables}, warnings)

    def _warnings(
        self,
        ratios: npt.NDArray[np.float64],
        lengths: npt.NDArray[np.float64],
        margins: npt.NDArray[np.float64],
        tokens: float,
    ) -> Iterator[tuple[str, str]]:
        chosen, rejected = (ratios / lengths).mean(axis=0)
        if chosen < -_FALLEN and rejected < -_FALLEN:
            yield (
                "both-fall",
                f"chosen answers fell {-chosen:.2f} nats a token below the reference, rejected "
                f"ones {-rejected:.2f}: the margin grows by what is said less often, not by what "
                "is said more; raise sft_weight or beta, or lower the learning rate",
            )
        first = self.answers.first_tokens
        error = float(margins.std() / max(1, len(margins)) ** 0.5)
        if first and tokens > _GROWN * first and margins.mean() <= 2 * error:
            yield (
                "longer-answers",
                f"its own answers have {tokens:.0f} tokens instead of {first:.0f}, and held-out "
                "pairs are not better ordered: see the length figures of `bc2 data lint`, or set "
                'loss = "length_normalised"',
            )

    def _numbers(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """[P, 2, 3] of `policy_and_reference`, and which pair each is of [P]."""
        numbers = range(self.rows.first_row(1))
        units = np.concatenate([self.rows.units(number) for number in numbers])
        with read_ahead(self._batches(), _AHEAD) as ready:
            batches = with_timeout(ready, self.config.data_timeout_s, self.check)
            found = in_turns(
                self.engine.call_model, self.engine.mesh, batches, policy_and_reference
            )
            return np.concatenate([*found]).reshape(-1, 2, 3), units

    def _batches(self) -> Iterator[Batch]:
        numbers = range(self.rows.first_row(1))
        micro = self.config.micro_sequences
        for at in range(0, len(numbers), micro):
            yield self.rows.batch(numbers[at : at + micro])
