"""Scores of texts that were scored lately, for texts that begin with the same tokens.

A client that compares answers to one question sends the question again with each of them, and
wants the log-probabilities of all of it (``echo`` with ``logprobs``). What two texts begin with has
the same log-probabilities, so the second text needs its own tokens alone: their keys before them
are in the cache (`InferenceEngine.score_passes`).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from bc2.generate.requests import Score, ScoreRequest
from bc2.generate.score import common_length

#: Texts that are remembered, and the most tokens of them together.
TEXTS = 64
TOKENS = 1 << 18


@dataclass(frozen=True)
class _Scored:
    """A text and what is known of its tokens from `first` on."""

    ids: tuple[int, ...]
    first: int
    score: Score
    top_k: int


class ScoreMemory:
    """The last `TEXTS` texts with their scores; of one model, and one state of its weights."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[int, ...], _Scored] = OrderedDict()
        self._tokens = 0

    def add(self, request: ScoreRequest, score: Score, top_k: int) -> None:
        """Remember a text; the oldest are forgotten for it."""
        ids = (*request.context, *request.continuation)
        self._drop(ids)
        self._texts[ids] = _Scored(ids, len(request.context), score, top_k)
        self._tokens += len(ids)
        while len(self._texts) > TEXTS or self._tokens > TOKENS:
            self._drop(next(iter(self._texts)))

    def known(self, request: ScoreRequest, top_k: int) -> Score | None:
        """The scores of the first tokens of a continuation, as many as are known; None: of none."""
        ids = (*request.context, *request.continuation)
        start = len(request.context)
        best: tuple[int, _Scored] | None = None
        for text in self._texts.values():
            if text.first > start or text.top_k < top_k or len(text.ids) <= start:
                continue
            if text.ids[:start] != ids[:start]:
                continue
            same = common_length(text.ids, ids)
            if same > start and (best is None or same > best[0]):
                best = same, text
        if best is None:
            return None
        same, text = best
        self._texts.move_to_end(text.ids)
        part, score = slice(start - text.first, same - text.first), text.score
        top = [some[:top_k] for some in score.top[part]] if top_k else []
        return Score(0, score.log_probs[part], score.greedy[part], 0, score.version, top)

    def _drop(self, ids: tuple[int, ...]) -> None:
        if self._texts.pop(ids, None) is not None:
            self._tokens -= len(ids)


def rest_of(request: ScoreRequest, known: Score | None) -> ScoreRequest | None:
    """What is left to score of a request; None: nothing."""
    if known is None:
        return request
    done = len(known.log_probs)
    left = request.continuation[done:]
    context = (*request.context, *request.continuation[:done])
    return ScoreRequest(context, left, request.where) if left else None


def joined(index: int, known: Score | None, rest: Score | None) -> Score:
    """The score of a request, of what was known and what was left."""
    parts = [part for part in (known, rest) if part is not None]
    return Score(
        index,
        [number for part in parts for number in part.log_probs],
        [one for part in parts for one in part.greedy],
        0,
        parts[-1].version,
        [top for part in parts for top in part.top],
    )


def leaders(requests: Sequence[ScoreRequest]) -> list[int]:
    """Those requests that are to be scored first, since others begin as they do.

    In the order of their tokens, that is each one which has less than half in common with the one
    before it.
    """
    texts = [(*one.context, *one.continuation) for one in requests]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    found = order[:1]
    for before, at in itertools.pairwise(order):
        if 2 * common_length(texts[before], texts[at]) < len(texts[at]):
            found.append(at)
    return found
