"""What training a reward model measures on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bc2.align.pairs.in_turns import in_turns
from bc2.align.pairs.packed_pairs import PackedPairs
from bc2.align.pairs.preference_tables import preference_tables
from bc2.align.pairs.right_order import right_order
from bc2.align.reward.reward_objective import answer_scores
from bc2.data.loader import Batch, read_ahead
from bc2.train.engines.base import Engine
from bc2.train.measured import Measured
from bc2.train.stream import with_timeout

#: Batches read ahead.
_AHEAD = 4


@dataclass(frozen=True)
class HeldoutScores:
    """Evaluations of the model that an engine trains; a function of its weights alone."""

    engine: Engine
    rows: PackedPairs
    sources: tuple[str, ...]
    micro_batch: int
    timeout_s: float
    """The longest wait for a batch."""
    check: Callable[[], None]
    """Called between batches; if it raises, the evaluation is abandoned."""

    def __call__(self) -> Measured:
        """Loss, accuracy, centre and scale of the scores; and tables of them."""
        scores, units = self._scores()
        chosen, rejected = scores.T
        table, places = self.rows.pairs.table[units], self.rows.pairs.places[units]
        _, first = np.unique(places, return_index=True)
        distinct = scores.reshape(-1)[first]  # an answer counts once, in however many pairs it is
        facts = {
            "heldout_loss": float(np.logaddexp(0.0, rejected - chosen).mean()),
            "heldout_accuracy": float(right_order(chosen - rejected).mean()),
            "heldout_score_margin": float((chosen - rejected).mean()),
            "heldout_pairs": len(scores),
            "score_centre": float(distinct.mean()),
            "score_scale": float(distinct.std()),
        }
        text = f"held-out pairs in order {facts['heldout_accuracy']:.1%}, "
        text += f"loss {facts['heldout_loss']:.4f} nats"
        lengths = self.rows.pairs.samples.trained[places]
        if not np.isfinite(scores).all():
            return Measured(facts, text)  # which says so
        tables = preference_tables(table, scores, lengths, self.sources)
        return Measured(facts, text, recorded={"preference": tables})

    def _scores(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """[P, 2] scores, and which pair each is of [P]."""
        numbers = range(self.rows.first_row(1))
        units = np.concatenate([self.rows.units(number) for number in numbers])
        with read_ahead(self._batches(), _AHEAD) as ready:
            batches = with_timeout(ready, self.timeout_s, self.check)
            found = [*in_turns(self.engine.call_model, self.engine.mesh, batches, answer_scores)]
        return np.concatenate(found).reshape(-1, 2), units

    def _batches(self) -> Iterator[Batch]:
        numbers = range(self.rows.first_row(1))
        for at in range(0, len(numbers), self.micro_batch):
            yield self.rows.batch(numbers[at : at + self.micro_batch])
