"""Log-probabilities of given texts, many at a time.

Requests are read in windows, so that their number is not limited by memory. The texts of a window
are sorted, which puts those with a common beginning beside each other. The first of them stores the
keys of the beginning, in whole blocks, and the others attend to these, in the same forward pass or
in later ones. Texts are packed into passes of `step_tokens`; the logits of all tokens never exist
at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from bc2.errors import Bc2Error, DataError, RunFailed, UsageError
from bc2.generate.cache.blocks import ROOT
from bc2.generate.cache.memory import Memory
from bc2.generate.cache.paged_attention import PagedStep
from bc2.generate.cache.segment import Segment
from bc2.generate.requests import Score, ScoreRequest
from bc2.generate.runner import ModelRunner
from bc2.generate.stats import EngineStats, timed
from bc2.generate.token_ids import check_ids

if TYPE_CHECKING:
    from bc2.generate.engine_config import EngineConfig


@dataclass(frozen=True)
class _Asked:
    """A request that was read."""

    index: int
    """Its number."""
    ids: tuple[int, ...]
    """Context and continuation without the last token, as far as they fit."""
    context: int
    """Tokens of the context that are left."""
    continuation: Sequence[int]
    cut: int
    """Tokens cut from the left."""


@dataclass
class _Text:
    """The tokens that the model reads for one request or for several."""

    ids: tuple[int, ...]
    """Context and continuation without the last token, which is predicted only."""
    context: int
    """Tokens of the context that are left."""
    asked: list[_Asked] = field(default_factory=list)

    def sharable(self, size: int) -> int:
        """Blocks before the first token whose prediction is wanted."""
        return (self.context - 1) // size


@dataclass
class _Row:
    """A text in a forward pass."""

    text: _Text
    segment: Segment
    held: list[int]
    """The blocks that it uses."""


class Scorer:
    """Answers score requests; see `InferenceEngine.score`.

    Args:
        version: that of the weights, now.
        keep: store the keys of whole texts, so that later requests can find them; else only
            those that two texts of a window have in common.
    """

    def __init__(
        self,
        runner: ModelRunner,
        memory: Memory,
        config: EngineConfig,
        stats: EngineStats,
        version: Callable[[], int],
        *,
        keep: bool = False,
    ):
        self.runner = runner
        self.memory = memory
        self.config = config
        self.stats = stats
        self.version = version
        self.keep = keep

    def passes(self, requests: Sequence[ScoreRequest], *, top_k: int) -> Iterator[list[Score]]:
        """The scores of requests that are read together, those of a forward pass at a time.

        Nothing is held between two passes, so that other sequences may be read then.

        Raises:
            DataError, RunFailed, UsageError: see `scores`; those of requests before any pass.
        """
        self._check(top_k)
        asked = [self._asked(index, one, cut=False) for index, one in enumerate(requests)]
        for found in self._passes(asked, top_k, share=True):
            yield list(found.values())

    def scores(
        self, requests: Iterable[ScoreRequest], *, top_k: int, cut: bool, share: bool
    ) -> Iterator[Score]:
        """See `InferenceEngine.score`."""
        self._check(top_k)
        numbered = enumerate(requests)
        refused: Bc2Error | None = None
        while refused is None:
            window, refused = self._read_window(numbered, cut=cut)
            yield from self._scored(window, top_k, share)
            if len(window) < self.config.window:
                break
        if refused is not None:
            raise refused

    def _check(self, top_k: int) -> None:
        vocab_size = self.runner.config.vocab_size
        if not 0 <= top_k <= vocab_size:
            raise UsageError(f"top_k is {top_k}; the vocabulary has {vocab_size} tokens")

    def _read_window(
        self, numbered: Iterator[tuple[int, ScoreRequest]], *, cut: bool
    ) -> tuple[list[_Asked], Bc2Error | None]:
        """The next requests, and the error that ended the reading, if one did."""
        window: list[_Asked] = []
        try:
            for index, request in itertools.islice(numbered, self.config.window):
                window.append(self._asked(index, request, cut=cut))
        except Bc2Error as error:
            return window, error
        return window, None

    def _scored(self, window: Sequence[_Asked], top_k: int, share: bool) -> list[Score]:
        found: dict[int, Score] = {}
        for some in self._passes(window, top_k, share):
            found |= some
        return [found[asked.index] for asked in window]

    def _passes(
        self, window: Sequence[_Asked], top_k: int, share: bool
    ) -> Iterator[dict[int, Score]]:
        """What each forward pass finds, by the number of the request."""
        texts = _texts(window, share)
        batch: list[_Row] = []
        size = 0
        try:
            for text, blocks in zip(texts, self._depths(texts, share), strict=True):
                more = len(text.ids) - self._in_cache(text, share)
                if batch and size + more > self.config.step_tokens:
                    found = self._read(batch, top_k)
                    self._give_back(batch)
                    size = 0
                    yield found
                batch.append(self._row(text, blocks, share))
                size += batch[-1].segment.length
            if batch:
                found = self._read(batch, top_k)
                self._give_back(batch)
                yield found
        except GeneratorExit:
            raise  # between two passes, when all is written that is known
        except BaseException:
            # Blocks are known before their keys are written.
            self.memory.forget_all()
            raise
        finally:
            self._give_back(batch)

    def _give_back(self, batch: list[_Row]) -> None:
        while batch:
            self.memory.give_back(batch.pop(0).held)

    def _asked(self, index: int, request: ScoreRequest, *, cut: bool) -> _Asked:
        """What is asked, cut from the left where it must and may be."""
        model, where = self.runner.config, request.where or f"request {index}"
        check_ids(request.context, model.vocab_size, where, "the context")
        check_ids(request.continuation, model.vocab_size, where, "the continuation")
        ids = (*request.context, *request.continuation[:-1])
        over = max(0, len(ids) - model.context_length)
        if over and (not cut or over >= len(request.context)):
            raise DataError(
                f"context and continuation have {len(ids) + 1} tokens and the model predicts "
                f"{model.context_length + 1} at most",
                where=where,
                todo="shorten the continuation" if cut else "shorten the text, or let it be cut",
            )
        return _Asked(index, ids[over:], len(request.context) - over, request.continuation, over)

    def _depths(self, texts: Sequence[_Text], share: bool) -> list[int]:
        """For each text the blocks to store: what it has in common with a neighbour, or all."""
        size = self.memory.pool.size
        if self.keep:
            return [len(text.ids) // size for text in texts]
        common = [0]
        for one, other in itertools.pairwise(texts if share else ()):
            same = min(one.sharable(size), other.sharable(size))
            common.append(common_length(one.ids, other.ids) // size if same else 0)
            common[-1] = min(common[-1], same)
        common += [0] * (len(texts) + 1 - len(common))
        return [max(common[at], common[at + 1]) for at in range(len(texts))]

    def _in_cache(self, text: _Text, share: bool) -> int:
        pool = self.memory.pool
        return (
            len(pool.find(text.ids, text.sharable(pool.size) * pool.size)) * pool.size
            if share
            else 0
        )

    def _row(self, text: _Text, depth: int, share: bool) -> _Row:
        """Give a text the blocks of its beginning: those that are there, and those it will fill."""
        pool = self.memory.pool
        there = pool.find(text.ids, depth * pool.size) if share else []
        found = there[: text.sharable(pool.size)]
        pool.share(found)
        # What is there already is not stored twice. Without room for them the keys are not stored,
        # and who needs them computes them again.
        more = min(max(0, depth - len(there)), pool.available) if there == found else 0
        held = [*found, *self.memory.take(more)]
        for at in range(len(found), len(held)):
            parent = held[at - 1] if at else ROOT
            new = pool.know(parent, text.ids[at * pool.size : (at + 1) * pool.size], held[at])
            assert new, "a block that was not found was known"
        start = len(found) * pool.size
        self.stats.shared_tokens += start
        segment = Segment(start, len(text.ids) - start, held, stored=more * pool.size)
        return _Row(text, segment, held)

    def _read(self, rows: Sequence[_Row], top_k: int) -> dict[int, Score]:
        tokens: list[int] = []
        places: list[int] = []
        labels: list[int] = []
        for row in rows:
            start = row.segment.start
            first = len(tokens) + row.text.context - 1 - start
            tokens += row.text.ids[start:]
            for asked in row.text.asked:
                places += range(first, first + len(asked.continuation))
                labels += asked.continuation
        self.stats.prompt_tokens += len(tokens)
        self.stats.steps += 1
        segments = [row.segment for row in rows]
        with timed(self.stats, "forward_s"), self.runner.no_grad():
            device = self.runner.device
            numbers = self.runner.log_probs(
                torch.tensor(tokens, device=device),
                PagedStep(self.memory.cache, segments),
                torch.tensor(places, device=device),
                torch.tensor(labels, device=device),
                top_k,
            )
            # Waits for a GPU, which is part of the pass's time.
            broken = bool(numbers.log_probs.isnan().any())
        if broken:
            raise RunFailed("the model's logits are not numbers", todo="take an earlier checkpoint")
        log_probs, greedy = numbers.log_probs.tolist(), numbers.greedy.tolist()
        tops = _tops(numbers.top_ids, numbers.top_log_probs)
        found: dict[int, Score] = {}
        at, version = 0, self.version()
        for row in rows:
            for asked in row.text.asked:
                span = slice(at, at + len(asked.continuation))
                at = span.stop
                index = asked.index
                found[index] = Score(
                    index, log_probs[span], greedy[span], asked.cut, version, tops[span]
                )
        return found


def _texts(window: Sequence[_Asked], share: bool) -> list[_Text]:
    """What the model reads, each text once, sorted."""
    found: dict[tuple[tuple[int, ...], int], _Text] = {}
    texts = []
    for asked in window:
        key = asked.ids, asked.context
        text = found.get(key) if share else None
        if text is None:
            text = found[key] = _Text(*key)
            texts.append(text)
        text.asked.append(asked)
    return sorted(texts, key=lambda text: text.ids) if share else texts


def _tops(
    ids: torch.Tensor | None, log_probs: torch.Tensor | None
) -> list[tuple[tuple[int, float], ...]]:
    if ids is None or log_probs is None:
        return []
    pairs = zip(ids.tolist(), log_probs.tolist(), strict=True)
    return [tuple(zip(some, numbers, strict=True)) for some, numbers in pairs]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens in which two texts begin alike."""
    most = min(len(one), len(other))
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
