"""The gate before the first update: where policy and reference are one, every log-ratio is 0."""

from __future__ import annotations

import numpy as np

from bc2.align.dpo.heldout_preferences import ROUNDING, policy_and_reference
from bc2.align.pairs.in_turns import in_turns
from bc2.align.pairs.packed_pairs import PackedPairs
from bc2.console import note
from bc2.errors import RunFailed
from bc2.train.engines.base import Engine
from bc2.train.precision import Precision

#: Rows of pairs that are looked at.
_ROWS = 8


def check_log_ratios(
    engine: Engine, rows: PackedPairs, micro_batch: int, precision: Precision, *, same: bool
) -> None:
    """Compare policy and reference on the first rows. All ranks call it.

    Args:
        same: whether they are one model: if not, how far they are apart is printed.

    Raises:
        RunFailed: they are one, and their log-probabilities differ.
    """
    numbers = range(min(_ROWS, rows.first_row(1)))
    batches = [
        rows.batch(numbers[at : at + micro_batch]) for at in range(0, len(numbers), micro_batch)
    ]
    found = in_turns(engine.call_model, engine.mesh, batches, policy_and_reference)
    policy, lengths, reference = np.concatenate([*found]).T
    ratios = (policy - reference) / lengths
    worst = float(np.abs(ratios).max())
    if not same:
        if engine.mesh.first:
            note(
                f"policy and reference are two models: log-ratios of {ratios.mean():+.4f} nats a "
                f"token in the mean of {len(ratios)} answers, {worst:.4f} at most"
            )
        return
    if not worst <= ROUNDING[precision]:
        raise RunFailed(
            f"policy and reference are one model, and their log-probabilities of an answer differ "
            f"by {worst:.2g} nats a token ({ROUNDING[precision]:g} in {precision} is rounding)",
            todo="train nothing with this: report it with the recipe, and try "
            'precision = "fp32" or another layout of ranks',
        )
