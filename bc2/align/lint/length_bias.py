"""How often the longer answer is the better one, and what the data's scores are.

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bc2.align.lint.pair_report import LengthBias, ScoreFigures
from bc2.align.pairs.preference_gaps import GAPS, gap_fifths
from bc2.align.pairs.preference_intervals import PromptDraws, interval
from bc2.data.pairs.pairs import PairTable

#: Scores are told in tenths of their range.
_TENTHS = 10


def length_bias(
    group: str, lengths: npt.NDArray[np.int64], prompts: npt.NDArray[np.int64]
) -> LengthBias:
    """How often the longer answer wins.

    Args:
        group: which pairs they are.
        lengths: [P, 2] tokens of the chosen and the rejected answer, P at least 1.
        prompts: [P], equal for pairs of one prompt.
    """
    ties = lengths[:, 0] == lengths[:, 1]
    wins = np.where(ties, 0.5, lengths[:, 0] > lengths[:, 1]).astype(np.float64)
    draws, every = PromptDraws(prompts), np.ones((len(wins), 1), np.bool_)
    bounds = interval(draws.shares(wins[:, None], every)[:, 0])
    return LengthBias(
        group=group,
        pairs=len(lengths),
        prompts=draws.prompts(every[:, 0]),
        ties=int(ties.sum()),
        longer_wins=float(wins.mean()),
        interval=None if bounds is None else (bounds[0], bounds[1]),
    )


def bias_by_source(
    table: PairTable, lengths: npt.NDArray[np.int64], sources: Sequence[str]
) -> Iterator[LengthBias]:
    """Of all pairs, and of each source where there are several."""
    if not len(table):
        return
    yield length_bias("all", lengths, table.prompt)
    present = np.unique(table.source_ids).tolist()
    for number in present if len(present) > 1 else ():
        mine = table.source_ids == number
        yield length_bias(sources[number], lengths[mine], table.prompt[mine])


def score_figures(
    table: PairTable, lengths: npt.NDArray[np.int64], answers: npt.NDArray[np.int64],
    sources: Sequence[str],
) -> Iterator[ScoreFigures]:  # fmt: skip
    """The scores of each source that has some.

    Args:
        lengths: [P, 2] tokens of the answers.
        answers: [P, 2], equal for one answer in several pairs.
    """
    scored = np.isfinite(table.scores).all(axis=1)
    for number in np.unique(table.source_ids[scored]).tolist():
        mine = scored & (table.source_ids == number)
        _, first = np.unique(answers[mine], return_index=True)
        scores = table.scores[mine].ravel()[first]
        lowest, highest = float(scores.min()), float(scores.max())
        counts, edges = np.histogram(scores, _TENTHS, (lowest, highest))
        yield ScoreFigures(
            source=sources[number],
            answers=len(scores),
            lowest=lowest,
            highest=highest,
            mean=float(scores.mean()),
            distinct=len(np.unique(scores)),
            histogram=tuple(
                (float(low), float(high), int(count))
                for low, high, count in zip(edges, edges[1:], counts, strict=False)
            ),
            gaps=tuple(_by_gap(table[mine], lengths[mine], highest - lowest)),
        )


def _by_gap(table: PairTable, lengths: npt.NDArray[np.int64], width: float) -> Iterator[LengthBias]:
    """By the fifth of the range that two scores are apart; the upper edge belongs to a fifth."""
    fifth = gap_fifths(table.gaps, width)
    for number in np.unique(fifth).tolist():
        mine = fifth == number
        low, high = ((number - 1) / GAPS * width, number / GAPS * width)
        yield length_bias(f"above {low:g} to {high:g}", lengths[mine], table.prompt[mine])
