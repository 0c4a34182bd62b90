"""Choosing tokens from logits, each sequence by its own settings.

Draws use the Gumbel-max trick with numbers that belong to a token, not to a batch (see
`bc2.generate.noise`), so a difference in the last bits of a logit changes a draw only where two
tokens nearly tie. Such a choice is reported as uncertain, and `bc2.generate.near_ties` settles it.
The vocabulary is never sorted: it is passed over in groups, and only groups that matter are
looked into.

Shapes:
    B  sequences      V  vocabulary      N  groups of the vocabulary      M  candidates
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from bc2.errors import RunFailed
from bc2.generate.noise import gumbel
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.head_weight import at_least_fp32
from bc2.model.log_probs import largest
from bc2.model.softmax import row_blocks

#: Tokens of a group.
GROUP = 64

#: Candidates looked at first where likely tokens are kept and others left out; then this many
#: times as many, and then all.
CANDIDATES, MORE = 64, 16

#: Log-probabilities are sums of many terms; they are known to this, in nats, in fp32.
SUM_ERROR = 1e-5


@dataclass(frozen=True)
class Draw:
    """What one sequence's next token is chosen by."""

    settings: SamplingConfig
    key: int = 0
    """From `sequence_key`."""
    place: int = 0
    """The number of the new token."""
    seen: Sequence[int] = ()
    """Distinct tokens of the sequence; needed for the repetition penalty."""


class Chosen(NamedTuple):
    """Choices, one for each sequence."""

    ids: Tensor
    """int64 [B]."""
    uncertain: Tensor
    """bool [B]: another choice is within the tolerance."""
    drawn: Tensor
    """Log-probability under the distribution drawn from, in nats [B]; 0 for greedy choices."""
    raw: Tensor | None
    """Log-probability under the unchanged logits [B]; None if nobody asked for it."""
    top: Mapping[int, tuple[list[int], list[float]]] = MappingProxyType({})
    """By sequence: ids and raw log-probabilities of the likeliest tokens, where asked for."""


#: Largest logits [B] -> how far the order of two logits cannot be trusted [B].
Tolerance = Callable[[Tensor], Tensor]


def exactly(top: Tensor) -> Tensor:
    """The tolerance of logits that are taken as they are."""
    return torch.full_like(top, -1.0)


def choose(logits: Tensor, draws: Sequence[Draw], tolerance: Tolerance = exactly) -> Chosen:
    """Choose each sequence's next token.

    Args:
        logits: [B, V]; used up.
        draws: one for each row.
        tolerance: see `Tolerance`.

    Raises:
        RunFailed: a row has no largest number.
    """
    x = logits.to(at_least_fp32(logits.dtype))
    raw = _Raw(x, draws)
    x = _penalized(x, draws)
    groups = _Groups(x)
    if not bool(groups.top.isfinite().all()):
        raise RunFailed("the model's logits are not numbers", todo="take an earlier checkpoint")
    ids = torch.empty(len(x), dtype=torch.int64, device=x.device)
    drawn = torch.zeros_like(groups.top)
    uncertain = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    margin = tolerance(groups.top)
    for rule, rows in _by_rule(draws).items():
        part = _Rows(groups, margin, draws, rows)
        at = part.index
        ids[at], drawn[at], uncertain[at] = rule(part)
    return raw.of(Chosen(ids, uncertain, drawn, None))


def _by_rule(draws: Sequence[Draw]) -> dict[_Rule, list[int]]:
    found: dict[_Rule, list[int]] = {}
    for row, draw in enumerate(draws):
        settings = draw.settings
        if settings.temperature == 0:
            rule: _Rule = _greedy
        elif settings.top_k or settings.top_p < 1 or settings.min_p > 0:
            rule = _among_kept
        else:
            rule = _among_all
        found.setdefault(rule, []).append(row)
    return found


def _penalized(x: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Apply repetition penalties, in place."""
    rows = [row for row, draw in enumerate(draws) if draw.settings.repetition_penalty != 1]
    if not rows:
        return x
    seen = [torch.as_tensor(draws[row].seen, dtype=torch.int64) for row in rows]
    counts = torch.tensor([len(ids) for ids in seen])
    row = torch.repeat_interleave(torch.tensor(rows), counts).to(x.device)
    by = torch.tensor([draws[row].settings.repetition_penalty for row in rows], dtype=x.dtype)
    by = torch.repeat_interleave(by, counts).to(x.device)
    columns = torch.cat(seen).to(x.device)
    old = x[row, columns]
    x[row, columns] = torch.where(old > 0, old / by, old * by)
    return x


class _Groups:
    """Logits, their largest, and the largest of each group."""

    def __init__(self, x: Tensor):
        self.x = x
        self.count = -(-x.shape[1] // GROUP)
        self.tops = self.reduced(x, torch.amax)  # [B, N]
        self.top = self.tops.amax(dim=1)

    def reduced(self, x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
        """Each group reduced to a number: [B, V] -> [B, N]."""
        whole = x.shape[1] // GROUP * GROUP
        parts = [reduce(x[:, :whole].view(len(x), -1, GROUP), dim=-1)] if whole else []
        if whole < x.shape[1]:
            parts.append(reduce(x[:, whole:], dim=-1, keepdim=True))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def members(self, rows: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of some groups [R, n], and their ids: both [R, n · GROUP].

        Beyond the vocabulary, ids are those of its last token and logits are -inf.
        """
        ids = (groups[..., None] * GROUP + torch.arange(GROUP, device=groups.device)).flatten(1)
        last = self.x.shape[1] - 1
        values = self.x[rows[:, None], ids.clamp(max=last)]
        return values.masked_fill(ids > last, -math.inf), ids.clamp(max=last)

    def largest(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """At least the `count` largest logits of rows, descending, and their ids: [R, M]."""
        if count >= self.x.shape[1] or count * GROUP * 2 > self.x.shape[1]:
            values, order = self.x[rows].sort(dim=1, descending=True, stable=True)
            return values, order
        # A number among the `count` largest lies in one of the groups with the largest maxima.
        values, ids = self.members(rows, self.tops[rows].topk(count, dim=1).indices)
        values, order = values.topk(count, dim=1)
        return values, ids.gather(1, order)


class _Rows:
    """Some sequences that are chosen for by the same rule."""

    def __init__(self, groups: _Groups, margin: Tensor, draws: Sequence[Draw], rows: list[int]):
        device = groups.x.device
        self.groups = groups
        self.index = torch.tensor(rows, device=device)
        self.all = len(rows) == len(groups.x)
        self.draws = [draws[row] for row in rows]
        self.top = groups.top[self.index]
        self.margin = margin[self.index].to(self.top.dtype)
        self.temperature = self.setting("temperature")

    def setting(self, name: str) -> Tensor:
        values = [getattr(draw.settings, name) for draw in self.draws]
        return torch.tensor(values, dtype=self.top.dtype, device=self.top.device)

    def top_k(self) -> Tensor:
        """Of each row, int64; 0 where all tokens are kept."""
        k = torch.tensor([draw.settings.top_k for draw in self.draws], device=self.top.device)
        return k.masked_fill(k >= self.groups.x.shape[1], 0)

    @property
    def scaled_margin(self) -> Tensor:
        """The tolerance after the temperature."""
        margin = self.margin / self.temperature
        return torch.where(self.margin < 0, margin, margin + SUM_ERROR)


def _noise(draws: Sequence[Draw], ids: Tensor, stream: int) -> Tensor:
    """Gumbel numbers of rows: [R, M] for ids [R, M] or [M]."""
    keys = torch.tensor([draw.key for draw in draws], device=ids.device)
    places = torch.tensor([draw.place for draw in draws], device=ids.device)
    return gumbel(keys, places, ids, stream)


#: Ids, log-probabilities under the distribution drawn from, and whether the choice is uncertain.
_Rule = Callable[[_Rows], tuple[Tensor, Tensor, Tensor]]


def _greedy(rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logit; of equal ones the lowest id."""
    tops = rows.groups.tops[rows.index]
    group = tops.argmax(dim=1, keepdim=True)
    values, ids = rows.groups.members(rows.index, group)
    near = rows.top - rows.margin
    others = (tops >= near[:, None]).sum(dim=1) + (values >= near[:, None]).sum(dim=1) > 2
    chosen = ids.gather(1, values.argmax(dim=1, keepdim=True))[:, 0]
    return chosen, torch.zeros_like(rows.top), others & (rows.margin >= 0)


def _among_all(rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from softmax(logits / temperature): first a group, then a token of it."""
    sums = _group_sums(rows)  # [R, N]
    device = sums.device
    number = torch.arange(rows.groups.count, device=device)
    group, gap = _first_and_gap(sums.log() + _noise(rows.draws, number, 0))
    values, ids = rows.groups.members(rows.index, group[:, None])
    values = (values - rows.top[:, None]) / rows.temperature[:, None]
    at, inner_gap = _first_and_gap(values + _noise(rows.draws, ids, 1))
    pick = at[:, None]
    drawn = values.gather(1, pick)[:, 0] - sums.sum(dim=1).log()
    uncertain = torch.minimum(gap, inner_gap) <= rows.scaled_margin
    return ids.gather(1, pick)[:, 0], drawn, uncertain


def _group_sums(rows: _Rows) -> Tensor:
    """Σ exp((logit - largest) / temperature) over each group: [R, N]."""
    groups = rows.groups
    found = torch.empty(len(rows.index), groups.count, dtype=rows.top.dtype, device=rows.top.device)
    for block in row_blocks(groups.x[: len(rows.index)], rows.top.dtype):
        x = groups.x[block] if rows.all else groups.x[rows.index[block]]
        y = (x - rows.top[block, None]).div_(rows.temperature[block, None]).exp_()
        found[block] = groups.reduced(y, torch.sum)
    return found


def _first_and_gap(x: Tensor) -> tuple[Tensor, Tensor]:
    """The place of the largest number of each row, and how far the next is below: [R], [R]."""
    if x.shape[1] == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device), x.new_full(
            (len(x),), math.inf
        )
    values, places = x.topk(2, dim=1)
    return places[:, 0], values[:, 0] - values[:, 1]


def _among_kept(rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from what top-k, top-p and min-p keep."""
    size = rows.groups.x.shape[1]
    ids = torch.empty(len(rows.index), dtype=torch.int64, device=rows.top.device)
    drawn, uncertain = torch.empty_like(rows.top), torch.empty_like(ids, dtype=torch.bool)
    sums = _log_sums(rows)
    most = max(int(rows.top_k().max()) + 1, CANDIDATES)
    left = torch.arange(len(ids), device=ids.device)
    while len(left):
        count = min(most, size)
        kept = _Kept(rows, left, sums, count)
        done = kept.enough | (count == size)
        at = left[done]
        ids[at], drawn[at], uncertain[at] = (x[done] for x in kept.choose())
        left = left[~done]
        most = most * MORE if most < size // MORE else size
    return ids, drawn, uncertain


def _log_sums(rows: _Rows) -> Tensor:
    """log Σ exp((logit - largest) / temperature) where top-p needs it over all tokens: [R]."""
    needed = (rows.setting("top_p") < 1) & (rows.top_k() == 0)
    if not bool(needed.any()):
        return torch.zeros_like(rows.top)
    return _group_sums(rows).sum(dim=1).log()


class _Kept:
    """The likeliest tokens of some rows, and which of them are kept.

    Each of the three rules keeps the tokens at or above a logit. Where the tolerance leaves open
    which logit that is, `least` is the one by the numbers, and `lowest` and `highest` are those
    that it may be.
    """

    def __init__(self, rows: _Rows, at: Tensor, log_sums: Tensor, count: int):
        self.rows, self.at = rows, at
        values, self.ids = rows.groups.largest(rows.index[at], count)
        temperature = rows.temperature[at, None]
        # [R, M], descending, relative to the largest, after the temperature.
        self.values = ((values - rows.top[at, None]) / temperature).double()
        self.margin = rows.scaled_margin[at].double()
        slack = self.margin.clamp(min=0.0)
        by_k, by_p = self._by_top_k(), self._by_top_p(log_sums[at].double(), slack)
        by_min = rows.setting("min_p")[at].double().log()
        least, lowest, highest = (torch.maximum(torch.maximum(by_k, each), by_min) for each in by_p)
        self.least, self.lowest, self.highest = least, lowest - slack, highest + slack
        #: Whether no token that may be kept is missing.
        self.enough = self.values[:, -1] < self.lowest

    def _by_top_k(self) -> Tensor:
        k = self.rows.top_k()[self.at]
        kth = self.values.gather(1, (k - 1).clamp(0, self.values.shape[1] - 1)[:, None])[:, 0]
        return kth.masked_fill((k == 0) | (k > self.values.shape[1]), -math.inf)

    def _by_top_p(self, log_sum: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = self.rows.setting("top_p")[self.at].double()
        kth = self._by_top_k()
        kept = self.values.masked_fill(self.values < kth[:, None], -math.inf)
        log_sum = torch.where(kth.isfinite(), kept.logsumexp(dim=1), log_sum)
        reached = (kept - log_sum[:, None]).exp().cumsum(dim=1)
        last = self.values.shape[1] - 1
        found = tuple(
            self.values.gather(1, (reached < q[:, None]).sum(dim=1).clamp(max=last)[:, None])[:, 0]
            # All is kept with p = 1; and if `reached` stays below p, more candidates are needed.
            .masked_fill((p >= 1) | (reached[:, -1] < q), -math.inf)
            for q in (p, p + slack, p - slack)
        )
        return found[0], found[1], found[2]

    def choose(self) -> tuple[Tensor, Tensor, Tensor]:
        """A draw from the kept tokens of each row: see `_Rule`."""
        draws = [self.rows.draws[i] for i in self.at.tolist()]
        noisy = self.values + _noise(draws, self.ids, 1)
        kept = self.values >= self.least[:, None]
        at = noisy.masked_fill(~kept, -math.inf).argmax(dim=1, keepdim=True)
        value = self.values.gather(1, at)[:, 0]
        drawn = value - self.values.masked_fill(~kept, -math.inf).logsumexp(dim=1)
        maybe = noisy.masked_fill(self.values < self.lowest[:, None], -math.inf)
        best, gap = _first_and_gap(maybe)
        uncertain = (best != at[:, 0]) | (gap <= self.margin) | (value < self.highest)
        uncertain &= self.margin >= 0
        dtype = self.rows.top.dtype
        return self.ids.gather(1, at)[:, 0], drawn.to(dtype), uncertain


@dataclass
class _Raw:
    """Log-probabilities under the unchanged logits, for the sequences that want them."""

    x: Tensor
    draws: Sequence[Draw]
    rows: list[int] = field(init=False)

    def __post_init__(self) -> None:
        draws = self.draws
        self.rows = [row for row, draw in enumerate(draws) if draw.settings.logprobs is not None]
        if not self.rows:
            return
        index = torch.tensor(self.rows, device=self.x.device)
        self.index = index
        changed = any(draws[row].settings.repetition_penalty != 1 for row in self.rows)
        whole = len(self.rows) == len(self.x)
        # A copy if the logits are going to be changed.
        self.x = self.x if whole and not changed else self.x[index]
        if whole and changed:
            self.x = self.x.clone()
        self.log_sum = torch.empty(len(index), dtype=self.x.dtype, device=self.x.device)
        for block in row_blocks(self.x, self.x.dtype):
            self.log_sum[block] = self.x[block].logsumexp(dim=1)

    def of(self, chosen: Chosen) -> Chosen:
        """`chosen` with raw log-probabilities."""
        if not self.rows:
            return chosen
        raw = torch.zeros_like(chosen.drawn)
        picked = self.x.gather(1, chosen.ids[self.index, None])[:, 0]
        raw[self.index] = picked - self.log_sum
        return chosen._replace(raw=raw, top=self._top())

    def _top(self) -> dict[int, tuple[list[int], list[float]]]:
        wanted = [
            (i, row, self.draws[row].settings.logprobs or 0) for i, row in enumerate(self.rows)
        ]
        most = min(max(count for _, _, count in wanted), self.x.shape[1])
        if not most:
            return {}
        ids = torch.cat([largest(self.x[b], most) for b in row_blocks(self.x, self.x.dtype)])
        log_probs = self.x.gather(1, ids) - self.log_sum[:, None]
        return {
            row: (ids[i, :count].tolist(), log_probs[i, :count].tolist())
            for i, row, count in wanted
            if count
        }
