"""What would become of pairs in programs that cut answers: bc2 leaves out what does not fit.

Where two answers first differ after the length at which they are cut, they become the same: the
loss is ln 2 then, and there is no gradient (OpenRLHF's issue 1311). Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bc2.align.lint.pair_report import CutPairs
from bc2.align.lint.pairs_found import PairsFound
from bc2.data.chats.chats import Chats
from bc2.tokenizer.chat import Chat

#: Most tokens of an answer that are compared.
_MOST = 1 << 15

#: Answers that are kept as they are compared: pairs of one prompt stand side by side.
_KEPT = 512

#: The shortest length that figures are given of.
_SHORTEST = 128


def shared_tokens(
    found: PairsFound, answers: Chats, chat: Chat
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How far the two answers of each pair are the same, from the beginning of their prompt.

    Returns:
        [P] tokens that they share, and [P] tokens of the longer one, its end included. -1 and 0 of
        pairs whose answers are the same, or could not be rendered.
    """
    samples, split = found.samples, found.split
    place_of = {int(index): place for place, index in enumerate(samples.index)}
    too_long = dict(samples.too_long)

    @lru_cache(_KEPT)
    def ids(answer: int) -> npt.NDArray[np.int32]:
        if answer in place_of:
            sample = samples.sample(place_of[answer])
            return np.append(sample.tokens, sample.labels[-1])[:_MOST]
        rendered = chat.render(answers.at(split, answer).messages)
        return np.array(rendered.ids[:_MOST], np.int32)

    def length(answer: int) -> int:
        if answer in place_of:
            return int(samples.lengths[place_of[answer]]) + 1
        return too_long[answer] + 1

    shared = np.full(len(found.table), -1, np.int64)
    longer = np.zeros(len(found.table), np.int64)
    known = place_of.keys() | too_long.keys()
    both = zip(found.table.chosen.tolist(), found.table.rejected.tolist(), strict=True)
    for number, (chosen, rejected) in enumerate(both):
        if chosen in known and rejected in known:
            shared[number] = _common(ids(chosen), ids(rejected))
            longer[number] = max(length(chosen), length(rejected)) if shared[number] >= 0 else 0
    return shared, longer


def _common(first: npt.NDArray[np.int32], second: npt.NDArray[np.int32]) -> int:
    """How many numbers two arrays begin with alike; -1: they are equal."""
    if np.array_equal(first, second):
        return -1
    size = min(len(first), len(second))
    differ = np.flatnonzero(first[:size] != second[:size])
    return int(differ[0]) if len(differ) else size


def cut_figures(shared: npt.NDArray[np.int64], longer: npt.NDArray[np.int64]) -> Sequence[CutPairs]:
    """Pairs that are cut, and that become the same, at powers of two up to the longest answer."""
    figures, tokens = [], _SHORTEST
    while tokens < longer.max(initial=0) and tokens <= _MOST:
        cut, same = int((longer > tokens).sum()), int((shared >= tokens).sum())
        figures.append(CutPairs(tokens, cut, same))
        tokens *= 2
    return figures
