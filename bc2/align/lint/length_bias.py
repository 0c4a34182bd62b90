"""How often the longer answer is the better one, and what the data's scores are.

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bc2.align.lint.pair_report import LengthBias, ScoreFigures
from bc2.data.pairs.pairs import PairTable

#: Resamplings of prompts, and how many are drawn at once.
_DRAWS, _AT_ONCE = 1_000, 50

#: Gaps are told in fifths of the range of the scores, scores in tenths.
_GAPS, _TENTHS = 5, 10

#: Decimals that differences of scores are rounded to: 0.6 - 0.4 is no more than 0.2.
_DECIMALS = 9


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
    _, number = np.unique(prompts, return_inverse=True)
    sums = np.bincount(number, wins).astype(np.float64)
    counts = np.bincount(number).astype(np.float64)
    return LengthBias(
        group=group,
        pairs=len(lengths),
        prompts=len(counts),
        ties=int(ties.sum()),
        longer_wins=float(wins.mean()),
        interval=_interval(sums, counts) if len(counts) > 1 else None,
    )


def _interval(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """95% of the shares among prompts that are drawn anew, as many as there are.

    Args:
        sums: of the wins of each prompt.
        counts: its pairs.
    """
    rng, prompts, shares = np.random.default_rng(0), len(counts), []
    for _ in range(_DRAWS // _AT_ONCE):
        drawn = rng.integers(0, prompts, (_AT_ONCE, prompts))
        shares.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(shares), [0.025, 0.975])
    return float(low), float(high)


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
    gaps = np.round(table.gaps / (width or 1.0), _DECIMALS)
    fifth = np.clip(np.ceil(gaps * _GAPS), 1, _GAPS).astype(np.int64)
    for number in np.unique(fifth).tolist():
        mine = fifth == number
        low, high = ((number - 1) / _GAPS * width, number / _GAPS * width)
        yield length_bias(f"above {low:g} to {high:g}", lengths[mine], table.prompt[mine])
