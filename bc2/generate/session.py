"""Continuous batches: sequences enter and leave at every forward pass.

The schedule follows from the submissions and the size of the cache alone. No clock is read, so
the same submissions give the same batches, and with them the same bits.

In each pass every sequence that has read its text decodes a token, and what is left of
`step_tokens` goes to prompts, in the order of their submission; a long prompt is read in pieces.
Where a sequence needs a block and none can be had, the one that came in last gives back its blocks
and waits, at the head of the queue, until there is room to read its text again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bc2.errors import DataError, UsageError
from bc2.generate.cache.blocks import ROOT
from bc2.generate.cache.memory import Memory
from bc2.generate.cache.paged_attention import PagedStep
from bc2.generate.cache.segment import Segment
from bc2.generate.live import DecodeBytes, Live
from bc2.generate.near_ties import NearTies, Unsettled
from bc2.generate.requests import Continuation, Generated, Request, TokenLogProb
from bc2.generate.runner import ModelRunner
from bc2.generate.sampling.choose import Chosen, choose
from bc2.generate.sampling.token_groups import Draw
from bc2.generate.stats import EngineStats, timed
from bc2.generate.token_ids import check_ids

if TYPE_CHECKING:
    from bc2.generate.engine_config import EngineConfig


@dataclass
class _Answer:
    """The continuations of a request that have ended."""

    request: Request
    done: dict[int, Continuation] = field(default_factory=dict)
    shared: int = 0


class Session:
    """Requests that are being answered; made by `InferenceEngine.open`."""

    def __init__(
        self,
        runner: ModelRunner,
        memory: Memory,
        config: EngineConfig,
        near_ties: NearTies,
        stats: EngineStats,
        *,
        eos_id: int,
        decode_bytes: DecodeBytes | None,
        version: int,
    ):
        self.runner = runner
        self.memory = memory
        self.config = config
        self.stats = stats
        self.version = version
        #: New tokens of the last `step`: the sequence, and the token's id.
        self.tokens: list[tuple[Live, int]] = []
        #: Sequences that the last `step` ended.
        self.ended: list[Live] = []
        self._near_ties = near_ties
        self._eos_id = eos_id
        self._decode_bytes = decode_bytes
        self._model = runner.config
        self._waiting: deque[Live] = deque()
        self._running: list[Live] = []
        self._answers: dict[int, _Answer] = {}
        self._finished: list[Generated] = []
        self._count = 0
        self._over = False

    # -------------------------------------------------------------------------- submissions

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._running and not self._waiting

    @property
    def waiting(self) -> int:
        """Sequences that wait for room."""
        return len(self._waiting)

    @property
    def hungry(self) -> bool:
        """Whether more requests could be of use now."""
        return len(self._waiting) < self.config.most_running

    def submit(self, request: Request) -> int:
        """Take a request; its number.

        Raises:
            DataError: the prompt is empty, is too long, or holds an id outside the vocabulary.
            UsageError: there are stop texts without a tokenizer or an empty one, or the cache is
                too small for the request.
            RuntimeError: see `step`.
        """
        self._see_that_it_lasts()
        index = self._count
        self._check(request, request.where or f"prompt {index}")
        self._count += 1
        self._answers[index] = _Answer(request)
        first, *forks = (
            Live(index, number, request, self._decode_bytes) for number in range(request.settings.n)
        )
        first.forks = forks
        self._waiting.append(first)
        return index

    def cancel(self, index: int) -> None:
        """End a request; what it has so far is its answer. Nothing happens if it has ended."""
        if index not in self._answers:
            return
        for live in [live for live in self._running if live.index == index]:
            live.reason = "cancelled"
            self._end(live)
        for live in [live for live in self._waiting if live.index == index]:
            self._waiting.remove(live)
            self._near_ties.drop(live)
            for each in (live, *live.forks):
                each.reason = "cancelled"
                self._answer(each)

    def finished(self) -> list[Generated]:
        """Answers that were completed since the last call, in the order in which they were."""
        found, self._finished = self._finished, []
        return found

    def close(self) -> None:
        """Give back all memory; what was not answered never will be."""
        self._over = True
        for live in self._running:
            self.memory.give_back(live.blocks)
        for live in (*self._running, *self._waiting):
            self._near_ties.drop(live)
        self._running.clear()
        self._waiting.clear()
        self._answers.clear()

    def _see_that_it_lasts(self) -> None:
        if self._over:
            raise RuntimeError("the session is closed, or a forward pass of it has failed")

    def _check(self, request: Request, where: str) -> None:
        settings, prompt = request.settings, request.prompt
        if settings.stop and self._decode_bytes is None:
            raise UsageError("stop texts need a tokenizer", where=where, todo="use stop_ids")
        if "" in settings.stop:
            raise UsageError("a stop text is empty", where=where, todo="leave it out")
        check_ids(prompt, self._model.vocab_size, where)
        if settings.stop_ids:
            check_ids(settings.stop_ids, self._model.vocab_size, where, "stop_ids")
        limit = self._model.context_length
        if len(prompt) > limit:
            raise DataError(
                f"the prompt has {len(prompt)} tokens and the model reads {limit}",
                where=where,
                todo="shorten the prompt",
            )
        # The last token is chosen and not read.
        longest = min(limit, len(prompt) + settings.max_new_tokens - 1)
        needed, pool = -(-longest // self.memory.pool.size), self.memory.pool
        if needed > pool.blocks:
            raise UsageError(
                f"the cache holds {pool.blocks * pool.size:,} tokens and the request may need "
                f"{longest:,}",
                where=where,
                todo="give the cache more memory, or lower max_new_tokens",
            )

    # ------------------------------------------------------------------------- forward passes

    def step(self) -> None:
        """One forward pass, and a new token of each sequence that has read all its tokens.

        Raises:
            RuntimeError: the session is closed, or an earlier step has failed: what its sequences
                have read is not known then.
        """
        self._see_that_it_lasts()
        self.tokens, self.ended = [], []
        try:
            with self.runner.no_grad():
                self._step()
        except BaseException:
            # Blocks are known from the moment when their tokens are planned to be read.
            self._over = True
            self.memory.forget_all()
            raise

    def _step(self) -> None:
        if self.memory.pool.is_scattered:
            self.memory.compact(live.blocks for live in self._running)
        self._make_room()
        work = self._plan()
        if not work:
            return
        with timed(self.stats, "forward_s"):
            hidden, logits = self._forward(work)
        ready = [live for live, _ in work if not live.unread]
        if ready:
            self._advance(ready, hidden, logits)

    def _make_room(self) -> None:
        """See that each decoding sequence has a block of its own for its next key."""
        for live in list(self._running):
            if live.reason is None and live in self._running and live.unread == 1:
                while self._needs_block(live) and not self.memory.pool.available:
                    self._preempt(self._running[-1])
                    if live not in self._running:
                        break
                else:
                    self._extend(live)

    def _needs_block(self, live: Live) -> bool:
        pool = self.memory.pool
        full = live.read == len(live.blocks) * pool.size
        return full or pool.users(live.blocks[-1]) > 1

    def _extend(self, live: Live) -> None:
        """Take the block for a sequence's next key; a copy of one that others use too."""
        if not self._needs_block(live):
            return
        (block,) = self.memory.take(1)
        if live.read < len(live.blocks) * self.memory.pool.size:
            shared = live.blocks.pop()
            self.memory.cache.copy([shared], [block])
            self.memory.give_back([shared])
        live.blocks.append(block)

    def _preempt(self, live: Live) -> None:
        self.stats.preemptions += 1
        self._running.remove(live)
        self._release(live)
        self._waiting.appendleft(live)

    def _release(self, live: Live) -> None:
        self.memory.give_back(live.blocks)
        live.blocks, live.read, live.known = [], 0, 0

    def _plan(self) -> list[tuple[Live, int]]:
        """The sequences of a pass, and how many tokens each reads."""
        work = [(live, 1) for live in self._running if live.unread == 1]
        budget = self.config.step_tokens - len(work)
        for live in self._running:
            if live.unread > 1 and budget:
                count = min(live.unread, budget)
                work.append((live, count))
                budget -= count
        for live, count in work:
            self._read(live, count)
        while budget and self._waiting and len(self._running) < self.config.most_running:
            live = self._waiting[0]
            if not self._admit(live):
                break
            self._waiting.popleft()
            count = min(live.unread, budget)
            work.append((live, count))
            budget -= count
            self._read(live, count)
        return work

    def _admit(self, live: Live) -> bool:
        """Give a sequence blocks for all its tokens, if there is room."""
        pool = self.memory.pool
        found = pool.find(live.ids, len(live.ids) - 1)
        needed = -(-len(live.ids) // pool.size) - len(found)
        unused = sum(pool.users(block) == 0 for block in found)
        # A block more for each running sequence, so that it need not leave again at once.
        margin = len(self._running)
        if pool.available - unused < needed + margin and self._running:
            return False
        pool.share(found)
        live.blocks = [*found, *self.memory.take(needed)]
        live.read, live.known = len(found) * pool.size, len(found)
        if not live.new:
            live.shared = live.read
        self.stats.shared_tokens += live.read
        self._running.append(live)
        return True

    def _read(self, live: Live, count: int) -> None:
        """Count tokens as read, and let others find the blocks that they fill."""
        pool = self.memory.pool
        if live.read < len(live.request.prompt) or count > 1:
            self.stats.prompt_tokens += count
        live.read += count
        while 0 <= live.known < live.read // pool.size:
            at = live.known
            parent = live.blocks[at - 1] if at else ROOT
            held = live.ids[at * pool.size : (at + 1) * pool.size]
            live.known = at + 1 if pool.know(parent, held, live.blocks[at]) else -1

    def _forward(self, work: list[tuple[Live, int]]) -> tuple[Tensor, Tensor]:
        """Hidden states and logits after those sequences that have read all their tokens."""
        tokens: list[int] = []
        rows: list[int] = []
        segments = []
        for live, count in work:
            segments.append(Segment(live.read - count, count, live.blocks))
            tokens += live.ids[live.read - count : live.read]
            if not live.unread:
                rows.append(len(tokens) - 1)
        self.stats.steps += 1
        step = PagedStep(self.memory.cache, segments)
        device = self.runner.device
        return self.runner.next_logits(
            torch.tensor(tokens, device=device),
            step,
            torch.tensor(rows, dtype=torch.int64, device=device),
        )

    def _advance(self, ready: list[Live], hidden: Tensor, logits: Tensor) -> None:
        """Choose the next tokens of sequences, and of those that fork from them here."""
        rows = list(range(len(ready)))
        for row, live in enumerate(list(ready)):
            for fork in self._fork(live):
                ready.append(fork)
                rows.append(row)
        if len(ready) > len(hidden):
            index = torch.tensor(rows, device=hidden.device)
            hidden, logits = hidden[index], logits[index]
        draws = [
            Draw(live.request.settings, live.key, live.new, live.seen, live.request.where)
            for live in ready
        ]
        with timed(self.stats, "sample_s"):
            chosen = choose(logits, draws, self._near_ties.tolerance(hidden, draws))
            self.runner.same_everywhere([chosen.ids, chosen.uncertain])
            near = chosen.uncertain.nonzero()[:, 0].tolist()
            tokens = chosen.ids.tolist()
            numbers = _log_probs(chosen, draws)
        if near:
            with timed(self.stats, "settle_s"):
                settled = self._near_ties.settle(
                    [Unsettled(ready[row], draws[row], chosen.near.get(row)) for row in near]
                )
                for row, one in zip(near, settled, strict=True):
                    tokens[row], numbers[row] = int(one.ids[0]), _log_probs(one, [draws[row]])[0]
            self.stats.settled += len(near)
        for live, token, number in zip(ready, tokens, numbers, strict=True):
            self._push(live, token, number)

    def _fork(self, live: Live) -> list[Live]:
        """Those continuations of a prompt, just read, that can begin now; the others wait."""
        forks, live.forks = live.forks, []
        room = self.config.most_running - len(self._running)
        begun, later = forks[:room], forks[room:]
        for fork in begun:
            self.memory.pool.share(live.blocks)
            fork.blocks, fork.read, fork.known = list(live.blocks), live.read, live.known
            self.stats.shared_tokens += live.read
            self._running.append(fork)
        self._waiting.extendleft(reversed(later))
        return begun

    def _push(self, live: Live, token: int, number: TokenLogProb | None) -> None:
        stop_ids = live.request.settings.stop_ids
        ends = (self._eos_id,) if stop_ids is None else stop_ids
        if live.push(token, ends, self._model.context_length):
            self.stats.new_tokens += 1
            self.tokens.append((live, token))
            if number is not None:
                live.log_probs.append(number)
        else:
            live.end = number
        if live.reason is not None:
            self._end(live)

    def _end(self, live: Live) -> None:
        self._running.remove(live)
        self._release(live)
        self._near_ties.drop(live)
        for each in (live, *live.forks):
            each.reason = each.reason or live.reason
            self._answer(each)

    def _answer(self, live: Live) -> None:
        self.ended.append(live)
        answer = self._answers[live.index]
        answer.done[live.number] = live.result()
        answer.shared = max(answer.shared, live.shared)
        if len(answer.done) == answer.request.settings.n:
            del self._answers[live.index]
            every = [answer.done[number] for number in range(answer.request.settings.n)]
            self._finished.append(
                Generated(live.index, answer.request, every, self.version, answer.shared)
            )


def _log_probs(chosen: Chosen, draws: Sequence[Draw]) -> list[TokenLogProb | None]:
    """The log-probabilities of the choices, for the sequences that want them."""
    if chosen.raw is None:
        return [None] * len(draws)
    raw, drawn = chosen.raw.tolist(), chosen.drawn.tolist()
    found: list[TokenLogProb | None] = []
    for row, draw in enumerate(draws):
        top = tuple(zip(*chosen.top.get(row, ((), ())), strict=True))
        wanted = draw.settings.logprobs is not None
        found.append(TokenLogProb(raw[row], drawn[row], top) if wanted else None)
    return found
