"""What is said of scores: of each model, of the pairs that the answers make, of models together.

Shapes: N answers, P pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from bc2.align.pairs.preference_tables import preference_tables
from bc2.align.reward.score_answers import ScoreScale
from bc2.align.reward.score_data import ScoredData
from bc2.align.reward.score_models import Scored
from bc2.data.pairs.pairs import PairTable
from bc2.errors import DataError


def score_figures(
    data: ScoredData, found: Scored, scales: Mapping[str, ScoreScale | None]
) -> dict[str, Any]:
    """All of it as JSON data.

    Args:
        scales: by the name of each model, in the order of `found`.
    """
    kept = found.kept
    table = None if data.pairs is None else scored_pairs(data.pairs.table(data.split), kept)
    models = {
        name: {
            **_spread(found.scores[place, kept]),
            "centre": None if scale is None else scale.centre,
            "scale": None if scale is None else scale.scale,
            "preference": None if table is None else _preference(data, table, found, place),
        }
        for place, (name, scale) in enumerate(scales.items())
    }
    return {
        "data": data.name,
        "answers": int(kept.sum()),
        "left_out": dict(found.left_out),
        "pairs": None if table is None else len(table),
        "models": models,
        "agreement": _agreement(found.scores[:, kept], list(scales), found.scores, table),
    }


def scored_pairs(table: PairTable, kept: npt.NDArray[np.bool_]) -> PairTable:
    """The pairs of which both answers have scores.

    Raises:
        DataError: there is none.
    """
    some = table[kept[table.chosen] & kept[table.rejected]]
    if len(table) and not len(some):
        raise DataError("no pair is left of which both answers have scores")
    return some


def _spread(scores: npt.NDArray[np.float64]) -> dict[str, float]:
    return {
        "mean": float(scores.mean()),
        "sd": float(scores.std()),
        "lowest": float(scores.min()),
        "highest": float(scores.max()),
    }


def _both(table: PairTable, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[N] -> [P, 2], those of the chosen and of the rejected answer."""
    return np.stack([values[table.chosen], values[table.rejected]], axis=1)


def _preference(
    data: ScoredData, table: PairTable, found: Scored, place: int
) -> dict[str, Any] | None:
    assert data.pairs is not None
    if not len(table):
        return None
    return preference_tables(
        table, _both(table, found.scores[place]), _both(table, found.lengths[place]),
        data.pairs.sources,
    )  # fmt: skip


def _agreement(
    scores: npt.NDArray[np.float64], names: list[str], whole: npt.NDArray[np.float64],
    table: PairTable | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Of each two models Kendall's τ over all answers, and the share of pairs ordered alike.

    Args:
        scores: [M, kept].
        whole: [M, N], into which the table's places are.
    """
    rows = []
    for one, other in itertools.combinations(range(len(names)), 2):
        tau = float(kendalltau(scores[one], scores[other]).statistic)
        alike = None
        if table is not None and len(table):
            signs = [np.sign(np.diff(_both(table, whole[at]), axis=1)) for at in (one, other)]
            alike = float((signs[0] == signs[1]).mean())
        rows.append(
            {
                "models": [names[one], names[other]],
                "kendall_tau": None if np.isnan(tau) else tau,
                "pairs_alike": alike,
            }
        )
    return rows
