"""Scores of answers over their length, and beside the scores that the data has.

An answer of several pairs counts once. Shapes: P pairs, N answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.data.pairs.pairs import PairTable

Floats = npt.NDArray[np.float64]

#: Groups of answers by length, of about as many answers each.
_LENGTHS = 10


def over_length(table: PairTable, scores: Floats, lengths: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Mean and quartiles of the scores of answers of some tokens, and the rank correlation."""
    some = _answers(table)
    scores, tokens = scores.ravel()[some], lengths.ravel()[some]
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, _LENGTHS + 1), method="nearest"))
    # The first and last token of each group: [low, high], of which only the first has its low.
    place = np.searchsorted(edges[1:], tokens) if len(edges) > 1 else np.zeros(len(tokens), int)
    bins = []
    for number in np.unique(place).tolist():
        mine, of = scores[place == number], tokens[place == number]
        bins.append(
            {
                "low": int(of.min()),
                "high": int(of.max()),
                "middle": float(np.median(of)),
                "answers": len(mine),
                "mean": float(mine.mean()),
                "quartiles": [float(one) for one in np.quantile(mine, [0.25, 0.5, 0.75])],
            }
        )
    return {"answers": len(scores), "spearman": _spearman(tokens, scores), "bins": bins}


def data_scores(table: PairTable, scores: Floats, sources: Sequence[str]) -> list[dict[str, Any]]:
    """Correlation with the data's scores, of each source that has some."""
    some = _answers(table)
    ours, theirs = scores.ravel()[some], table.scores.ravel()[some]
    source = np.repeat(table.source_ids, 2)[some]
    rows = []
    for number in np.unique(source[np.isfinite(theirs)]).tolist():
        mine = (source == number) & np.isfinite(theirs)
        one, other = ours[mine], theirs[mine]
        rows.append(
            {
                "source": sources[number],
                "answers": len(one),
                "pearson": _pearson(one, other),
                "spearman": _spearman(one, other),
            }
        )
    return rows


def _answers(table: PairTable) -> npt.NDArray[np.intp]:
    """[N] places of the answers, each once, in what is [P, 2] of the pairs."""
    places = np.stack([table.chosen, table.rejected], axis=1).ravel()
    return np.unique(places, return_index=True)[1]


def _spearman(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float | None:
    return _pearson(_ranks(one), _ranks(other))


def _ranks(values: npt.NDArray[Any]) -> Floats:
    """Ranks from the lowest; equal values have the mean of theirs."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts, dtype=np.float64)
    ranks: Floats = (last - (counts - 1) / 2)[number]
    return ranks


def _pearson(one: Floats, other: Floats) -> float | None:
    """None where one of them has one value alone."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])
