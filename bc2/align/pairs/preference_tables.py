"""How well numbers order pairs: over all, by gap of the data's scores, by source, beside length.

A pair whose answers have one number counts half, as it would if a coin decided; so does a pair
whose answers are equally long for the rule "the longer one wins". Intervals hold 95% of what
prompts give that are drawn anew (`PromptDraws`). Shapes: P pairs, N answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bc2.align.pairs.preference_gaps import GAPS, gap_fifths
from bc2.align.pairs.preference_intervals import Floats, PromptDraws, interval
from bc2.align.pairs.preference_scores import data_scores, over_length
from bc2.align.pairs.right_order import right_order
from bc2.data.pairs.pairs import PairTable

Mask = npt.NDArray[np.bool_]

#: Bins of the predicted probability, from a half to one, and of the margins.
_PREDICTED, _MARGINS = 10, 30


def preference_tables(
    table: PairTable,
    scores: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.int32],
    sources: Sequence[str],
) -> dict[str, Any]:
    """What is recorded with a model, and drawn on a run's page: JSON data, docs/watching.md.

    Args:
        table: the pairs, P of them.
        scores: [P, 2], what the model gives the chosen and the rejected answer.
        lengths: [P, 2] tokens of the answers.
        sources: names, into which `PairTable.source_ids` are places.

    Raises:
        ValueError: there is no pair, or a score is not finite.
    """
    if not len(table):
        raise ValueError("there are no pairs to make tables of")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} scores are not finite")
    orders = _Orders.of(table, scores, lengths)
    gaps = _gap_masks(table)
    present = np.unique(table.source_ids).tolist()
    rows = [np.ones(len(table), np.bool_), *gaps, *(table.source_ids == n for n in present)]
    whole, *parts = orders.rows(rows)
    return {
        **whole,
        "loss": float(np.logaddexp(0.0, -orders.margins).mean()),
        "by_gap": [
            {"low": n / GAPS, "high": (n + 1) / GAPS, **row}
            for n, row in enumerate(parts[: len(gaps)])
        ],
        "by_source": [
            {"source": sources[number], **row}
            for number, row in zip(present, parts[len(gaps) :], strict=True)
        ],
        "length_balanced": orders.length_balanced(),
        "calibration": orders.calibration(),
        "over_length": over_length(table, scores, lengths),
        "data_scores": data_scores(table, scores, sources),
        "margins": _margins(orders.margins),
    }


@dataclass(frozen=True)
class _Orders:
    """Which pairs the model has in order, and which the rule has."""

    draws: PromptDraws
    margins: Floats
    right: Floats
    """[P] 1 where the better one has more, 0.5 for a tie."""
    longer: Floats
    """[P] the same of lengths."""

    @classmethod
    def of(cls, table: PairTable, scores: Floats, lengths: npt.NDArray[np.int32]) -> Self:
        margins = scores[:, 0] - scores[:, 1]
        longer = (lengths[:, 0] - lengths[:, 1]).astype(np.float64)
        return cls(PromptDraws(table.prompt), margins, right_order(margins), right_order(longer))

    def rows(self, masks: Sequence[Mask]) -> list[dict[str, Any]]:
        """Of some pairs each: accuracy, the rule's, and how far apart they are in one draw."""
        some = np.stack(masks, axis=1)
        values = [np.repeat(one[:, None], len(masks), axis=1) for one in (self.right, self.longer)]
        both = self.draws.shares(np.concatenate(values, axis=1), np.tile(some, 2))
        right, longer = np.split(both.T, 2)
        return [self._row(*each) for each in zip(masks, right, longer, strict=True)]

    def _row(self, mask: Mask, right: Floats, longer: Floats) -> dict[str, Any]:
        accuracy, rule = _mean(self.right[mask]), _mean(self.longer[mask])
        above = None if accuracy is None or rule is None else accuracy - rule
        return {
            "pairs": int(mask.sum()),
            "prompts": self.draws.prompts(mask),
            "ties": int((self.margins[mask] == 0).sum()),
            "accuracy": accuracy,
            "interval": interval(right),
            "longer_wins": rule,
            "longer_interval": interval(longer),
            "above_length": above,
            "above_length_interval": interval(right - longer),
        }

    def length_balanced(self) -> dict[str, Any] | None:
        """The mean of the accuracies where the longer and where the shorter answer is better.

        In it both count the same, so that the rule is right in half; pairs of one length are left
        out. None: one of the two has no pair.
        """
        masks = np.stack([self.longer == 1, self.longer == 0], axis=1)
        if not masks.any(axis=0).all():
            return None
        longer, shorter = (float(self.right[mask].mean()) for mask in masks.T)
        drawn = self.draws.shares(np.stack([self.right, self.right], axis=1), masks)
        return {
            "pairs": int(masks.sum()),
            "accuracy": (longer + shorter) / 2,
            "interval": interval(drawn.mean(axis=1)),
            "longer_is_better": longer,
            "shorter_is_better": shorter,
        }

    def calibration(self) -> dict[str, Any]:
        """How often the answer with the higher score is the better one, beside σ(|margin|).

        The error is the mean over pairs of how far the two are apart in a pair's bin.
        """
        predicted = 1 / (1 + np.exp(-np.abs(self.margins)))
        place = np.minimum((predicted - 0.5) * 2 * _PREDICTED, _PREDICTED - 1).astype(np.int64)
        present = np.unique(place)
        masks = place[:, None] == present
        drawn = self.draws.shares(np.repeat(self.right[:, None], len(present), axis=1), masks)
        bins = [
            {
                "low": 0.5 + number / (2 * _PREDICTED),
                "high": 0.5 + (number + 1) / (2 * _PREDICTED),
                "pairs": int(mask.sum()),
                "predicted": float(predicted[mask].mean()),
                "observed": float(self.right[mask].mean()),
                "interval": interval(shares),
            }
            for number, mask, shares in zip(present.tolist(), masks.T, drawn.T, strict=True)
        ]
        apart = sum(one["pairs"] * abs(one["observed"] - one["predicted"]) for one in bins)
        return {"bins": bins, "error": apart / len(predicted)}


def _gap_masks(table: PairTable) -> list[Mask]:
    """Pairs by fifth of the range that the scores of their source have; none without scores."""
    fifths, scored = np.zeros(len(table), np.int64), np.isfinite(table.scores).all(axis=1)
    for number in np.unique(table.source_ids[scored]):
        mine = scored & (table.source_ids == number)
        fifths[mine] = gap_fifths(table.gaps[mine], float(np.ptp(table.scores[mine])))
    return [fifths == number for number in range(1, GAPS + 1)] if scored.any() else []


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _margins(margins: Floats) -> dict[str, Any]:
    counts, edges = np.histogram(margins, _MARGINS)
    return {
        "mean": float(margins.mean()),
        "sd": float(margins.std()),
        "edges": [float(edge) for edge in edges],
        "pairs": [int(count) for count in counts],
    }
