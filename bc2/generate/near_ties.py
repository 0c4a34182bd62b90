"""Settle near ties, so that greedy output depends on the prompt alone.

The results of matrix kernels differ in their last bits with the shape of a batch and with the
cache. This changes a choice only where the two best tokens differ by as little. There, one
canonical pass decides: the sequence alone, without a cache, in fp64. Of equal logits the lowest
id wins.

Shapes:
    T  tokens      D  hidden size      V  vocabulary      B  sequences
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bc2.generate.cache.memory import Memory
from bc2.generate.cache.paged_attention import PagedStep
from bc2.generate.cache.segment import Segment
from bc2.generate.live import Live
from bc2.generate.runner import ModelRunner
from bc2.generate.sampling.choose import Chosen, Tolerance, choose
from bc2.generate.sampling.token_groups import Draw
from bc2.model.head_weight import spans
from bc2.model.heads import normalize_rows

#: How far the results of two kernels may differ, in roundings, by bytes of the dtype. 16-bit
#: kernels sum in fp32 and round what they store. tests/generate/test_near_ties.py measures the
#: difference.
ROUNDINGS = {2: 6.0, 4: 32.0, 8: 32.0}

#: Rows of the head that are converted at once.
HEAD_ROWS = 8192


def tolerance(layers: int, hidden: Tensor, longest_row: float, top: Tensor) -> Tensor:
    """The largest difference of two logits whose order another batch shape could reverse: [B].

    It is roundings · ε · (√(2L) · rms(hidden) · longest row of the head + |largest logit|). Each
    of the 2L sublayers rounds the residual stream to ε, the errors add up as in a random walk,
    and the product with a row of the head carries them into a logit. This is an estimate for
    ordinary weights and no bound for adversarial ones.

    Args:
        layers: L.
        hidden: [B, D], in the model's dtype.
        longest_row: the largest L2 norm of the head's rows.
        top: [B], the largest logits.
    """
    epsilon = torch.finfo(hidden.dtype).eps
    rms = hidden.double().square().mean(dim=-1).sqrt()
    scale: Tensor = (2 * layers) ** 0.5 * rms * longest_row + top.double().abs()
    return ROUNDINGS[hidden.dtype.itemsize] * epsilon * scale


@dataclass(frozen=True)
class Unsettled:
    """A choice that is to be settled."""

    live: Live
    draw: Draw
    near: Sequence[int] | None = None
    """The tokens that it may be; None: any."""

    @property
    def candidates(self) -> Sequence[int] | None:
        """The tokens whose logits are needed; None: all."""
        return None if self.draw.settings.logprobs is not None else self.near


class NearTies:
    """Settles the near ties of a runner's choices.

    A model in 16 bits is in a near tie at every few tokens. There a pass in fp32 decides first,
    which keeps the keys of what it has read; only what is a near tie in fp32 too takes the
    canonical pass. What was kept can be dropped at any time: it changes no choice.

    Args:
        make_memory: a cache in fp32 for that, made when it is first needed.
        step_tokens: the most tokens in a pass.
    """

    def __init__(self, runner: ModelRunner, make_memory: Callable[[], Memory], step_tokens: int):
        self.runner = runner
        self._make_memory = make_memory
        self._step_tokens = step_tokens
        self._wide: WidePass | None = None

    def refresh(self) -> None:
        """Forget what was read with other weights."""
        self._wide = None

    def drop(self, live: Live) -> None:
        """Forget a sequence."""
        if self._wide is not None:
            self._wide.drop(live)

    def tolerance(self, hidden: Tensor, draws: Sequence[Draw]) -> Tolerance:
        """The tolerance of choices after hidden states [B, D]; see `sampling.choose`.

        Drawn tokens of 16-bit models are taken as they are: they are repeatable, but depend on
        the batch.
        """
        layers, longest = self.runner.config.num_layers, self.runner.longest_row()
        settings = [draw.settings for draw in draws]
        factor = [max(s.repetition_penalty, 1 / s.repetition_penalty) for s in settings]
        by = torch.tensor(factor, dtype=torch.float64, device=hidden.device)
        left = [hidden.dtype.itemsize == 2 and s.temperature > 0 for s in settings]
        untouched = torch.tensor(left, device=hidden.device)

        def of(top: Tensor) -> Tensor:
            return (tolerance(layers, hidden, longest, top) * by).masked_fill(untouched, -1.0)

        return of

    def settle(self, rows: Sequence[Unsettled]) -> list[Chosen]:
        """The next tokens of sequences whose choice is uncertain."""
        found: dict[int, Chosen] = {}
        if self.runner.dtype.itemsize == 2:
            if self._wide is None:
                self._wide = WidePass(self.runner, self._make_memory(), self._step_tokens)
            found = self._by_wide(self._wide.hidden([row.live for row in rows]), rows)
        return [
            found[at]
            if at in found
            else canonical_choice(self.runner, row.live.ids, row.draw, row.candidates)
            for at, row in enumerate(rows)
        ]

    def _by_wide(
        self, hidden: Mapping[int, Tensor], rows: Sequence[Unsettled]
    ) -> dict[int, Chosen]:
        """The choices that are certain after hidden states in fp32, by the number of the row."""
        if not hidden:
            return {}
        logits = [wide_logits(self.runner, x, rows[at].candidates) for at, x in hidden.items()]
        draws = [rows[at].draw for at in hidden]
        tolerance = self.tolerance(torch.stack(list(hidden.values())), draws)
        chosen = choose(torch.stack(logits), draws, tolerance)
        certain = (~chosen.uncertain).tolist()
        return {at: chosen.row(i) for i, at in enumerate(hidden) if certain[i]}


class WidePass:
    """A 16-bit model in fp32, over a cache of its own."""

    def __init__(self, runner: ModelRunner, memory: Memory, step_tokens: int):
        self.runner = runner
        self.memory = memory
        self._step_tokens = step_tokens
        #: Blocks and tokens read of each sequence; the one used last at the end.
        self._held: dict[Live, tuple[list[int], int]] = {}

    def drop(self, live: Live) -> None:
        if live in self._held:
            self.memory.give_back(self._held.pop(live)[0])

    def hidden(self, lives: Sequence[Live]) -> dict[int, Tensor]:
        """The hidden states [D] after sequences, by their place; not of those that do not fit."""
        pool = self.memory.pool
        found: dict[int, Tensor] = {}
        batch: list[int] = []
        taken = 0
        for at, live in enumerate(lives):
            needed = -(-len(live.ids) // pool.size)
            if needed > pool.blocks:
                continue
            if batch and taken + needed > pool.blocks:
                found |= self._read(lives, batch)
                batch, taken = [], 0
            batch.append(at)
            taken += needed
        return found | self._read(lives, batch)

    def _read(self, lives: Sequence[Live], batch: Sequence[int]) -> dict[int, Tensor]:
        """Read what is new of some sequences, which fit together."""
        pool = self.memory.pool
        for at in batch:
            self._held[lives[at]] = self._held.pop(lives[at], ([], 0))
        kept = {lives[at] for at in batch}
        for at in batch:
            live = lives[at]
            blocks, read = self._held[live]
            needed = -(-len(live.ids) // pool.size) - len(blocks)
            while pool.available < needed:
                self.drop(next(other for other in self._held if other not in kept))
            self._held[live] = [*blocks, *self.memory.take(needed)], read
        found: dict[int, Tensor] = {}
        left = list(batch)
        while left:
            left = self._pass(lives, left, found)
        return found

    def _pass(
        self, lives: Sequence[Live], left: Sequence[int], found: dict[int, Tensor]
    ) -> list[int]:
        """One forward pass; the sequences that are not read to their ends after it."""
        tokens: list[int] = []
        segments, ends = [], {}
        for at in left:
            live = lives[at]
            blocks, read = self._held[live]
            count = min(len(live.ids) - read, self._step_tokens - len(tokens))
            if not count:
                break
            segments.append(Segment(read, count, blocks))
            tokens += live.ids[read : read + count]
            self._held[live] = blocks, read + count
            if read + count == len(live.ids):
                ends[at] = len(tokens) - 1
        step = PagedStep(self.memory.cache, segments)
        rows = torch.tensor(list(ends.values()), dtype=torch.int64, device=self.runner.device)
        ids = torch.tensor(tokens, device=self.runner.device)
        hidden = self.runner.layer_by_layer(ids, step, torch.float32, rows)
        found |= dict(zip(ends, hidden.unbind(), strict=True))
        return [at for at in left if at not in ends]


def canonical_choice(
    runner: ModelRunner, ids: Sequence[int], draw: Draw, candidates: Sequence[int] | None = None
) -> Chosen:
    """The next token of a sequence, by the canonical pass.

    Args:
        candidates: the tokens that it may be; None: any.
    """
    hidden = canonical_hidden(runner, torch.tensor(ids, device=runner.device))
    return choose(wide_logits(runner, hidden, candidates)[None], [draw])


def wide_logits(
    runner: ModelRunner, hidden: Tensor, candidates: Sequence[int] | None = None
) -> Tensor:
    """The logits [V] after a hidden state [D], in its dtype.

    Args:
        candidates: compute those of these tokens, and set the others to -inf; None: all.
    """
    with runner.weights_of(runner.config.head_module) as weights:
        weight = weights["weight"]
        found = torch.full((len(weight),), -torch.inf, dtype=hidden.dtype, device=hidden.device)
        here = torch.arange(len(weight), device=hidden.device)
        if candidates is not None:
            shard = runner.shard
            here = torch.tensor(candidates, device=hidden.device) - (shard.first if shard else 0)
            here = here[(here >= 0) & (here < len(weight))]
        for span in spans(len(here), HEAD_ROWS):
            rows = weight[here[span]].to(hidden.dtype)
            if runner.config.norm_head:
                rows = normalize_rows(rows)
            # Row by row: a logit must not depend on the place of its row, so that equal rows tie.
            found[here[span]] = (rows * hidden).sum(dim=1)
    return runner.mesh.tensor.all_gather(found, dim=-1)


def canonical_hidden(runner: ModelRunner, tokens: Tensor) -> Tensor:
    """The last hidden state [D] of a sequence alone, in fp64."""
    last = torch.tensor([len(tokens) - 1], device=tokens.device)
    return runner.layer_by_layer(tokens, None, torch.float64, last)[0]
