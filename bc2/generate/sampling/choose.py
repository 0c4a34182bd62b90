"""Choosing tokens from logits, each sequence by its own settings.

Draws use the Gumbel-max trick with numbers that belong to a token, not to a batch (see
`bc2.generate.sampling.noise`), so a difference in the last bits of a logit changes a draw only
where two tokens nearly tie. Such a choice is reported as uncertain, and `bc2.generate.near_ties`
settles it. The vocabulary is never sorted: it is passed over in groups, and only groups that
matter are looked into.

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
from bc2.generate.sampling.kept_tokens import CANDIDATES, Kept, Limits, Listed, Whole
from bc2.generate.sampling.token_groups import Draw, Groups, Rows, first_and_gap
from bc2.model.head_weight import at_least_fp32
from bc2.model.log_probs import largest
from bc2.model.softmax import row_blocks


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
    near: Mapping[int, list[int]] = MappingProxyType({})
    """By sequence: the tokens that an uncertain greedy choice may be."""

    def row(self, number: int) -> Chosen:
        """That of one sequence alone."""
        one = slice(number, number + 1)
        raw = None if self.raw is None else self.raw[one]
        top = {0: self.top[number]} if number in self.top else {}
        near = {0: self.near[number]} if number in self.near else {}
        return Chosen(self.ids[one], self.uncertain[one], self.drawn[one], raw, top, near)


#: Largest logits [B] -> how far the order of two logits cannot be trusted [B].
Tolerance = Callable[[Tensor], Tensor]


def exactly(top: Tensor) -> Tensor:
    """The tolerance of logits that are taken as they are."""
    return torch.full_like(top, -1.0)


@torch.no_grad()
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
    groups = Groups(x)
    numbers = groups.top.isfinite()
    if not bool(numbers.all()):
        raise RunFailed(
            "the model's logits are not numbers",
            where=draws[numbers.tolist().index(False)].where,
            todo="take an earlier checkpoint",
        )
    ids = torch.empty(len(x), dtype=torch.int64, device=x.device)
    drawn = torch.zeros_like(groups.top)
    uncertain = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    margin = tolerance(groups.top)
    for rule, rows in _by_rule(draws).items():
        at = torch.tensor(rows, device=x.device)
        margins = margin[at].to(x.dtype)
        part = Rows(groups, [draws[row] for row in rows], at, groups.top[at], margins)
        ids[at], drawn[at], uncertain[at] = rule(part)
    near = _near(x, groups.top - margin, uncertain, draws)
    return raw.of(Chosen(ids, uncertain, drawn, None, near=near))


def _near(
    x: Tensor, least: Tensor, uncertain: Tensor, draws: Sequence[Draw]
) -> dict[int, list[int]]:
    """See `Chosen.near`."""
    return {
        row: (x[row] >= least[row]).nonzero()[:, 0].tolist()
        for row in uncertain.nonzero()[:, 0].tolist()
        if draws[row].settings.temperature == 0
    }


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


#: Ids, log-probabilities under the distribution drawn from, and whether the choice is uncertain.
_Rule = Callable[[Rows], tuple[Tensor, Tensor, Tensor]]


def _greedy(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logit; of equal ones the lowest id."""
    tops = rows.groups.tops[rows.index]
    group = tops.argmax(dim=1, keepdim=True)
    values, ids = rows.groups.members(rows.index, group)
    near = rows.top - rows.margin
    others = (tops >= near[:, None]).sum(dim=1) + (values >= near[:, None]).sum(dim=1) > 2
    chosen = ids.gather(1, values.argmax(dim=1, keepdim=True))[:, 0]
    return chosen, torch.zeros_like(rows.top), others & (rows.margin >= 0)


def _among_all(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from softmax(logits / temperature)."""
    sums = rows.group_sums()
    every = torch.arange(rows.groups.count, device=sums.device)
    none = torch.full_like(rows.top, -math.inf, dtype=torch.float64)
    total = sums.sum(dim=1, dtype=torch.float64)
    return _drawn(rows, Kept(Limits(none, none, none), sums, sums, sums, every, total))


def _among_kept(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from what top-k, top-p and min-p keep."""
    ids = torch.empty_like(rows.index)
    drawn, uncertain = torch.empty_like(rows.top), torch.empty_like(ids, dtype=torch.bool)
    k = rows.top_k()
    # Where top-p needs the sum over all tokens, what that takes can be used again.
    summed = (rows.setting("top_p") < 1) & (k == 0)
    few, some = CANDIDATES
    for these, count, over_all in (
        (summed, few, True),
        (~summed & (k < few), few, False),
        ((k >= few) & (k < some), some, False),
        (k >= some, 0, False),
    ):
        at = these.nonzero()[:, 0]
        if len(at):
            ids[at], drawn[at], uncertain[at] = _by_order(rows.some(at), count, over_all)
    return ids, drawn, uncertain


def _by_order(rows: Rows, count: int, over_all: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `_Rule`.

    Args:
        count: how many of the likeliest tokens are looked at first; 0: none.
        over_all: the sums over all tokens are needed in any case.
    """
    likelihoods = rows.likelihoods() if over_all or not count else None
    total = torch.ones_like(rows.top) if likelihoods is None else likelihoods.sums.sum(dim=1)
    # The largest is 1, so that few tokens cannot sum to more than their number.
    hopeless = over_all and bool((rows.setting("top_p") * total > 2 * count).all())
    if likelihoods and (hopeless or not count):
        return _drawn(rows, Whole(rows, likelihoods).kept())
    listed = Listed(rows, min(count, rows.groups.x.shape[1]), total.double())
    left = (~listed.enough).nonzero()[:, 0]
    found = _drawn(rows, listed.kept()) if len(left) < len(total) else None
    if not len(left) and found:
        return found
    some = rows.some(left)
    of = likelihoods.some(left) if likelihoods else some.likelihoods()
    others = _drawn(some, Whole(some, of).kept())
    if found:
        for into, other in zip(found, others, strict=True):
            into[left] = other
    return found or others


def _drawn(rows: Rows, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from what is kept: first a group, then a token of it. See `_Rule`.

    How the kept tokens were found has no part in this.
    """
    limits, margin = kept.limits, rows.scaled_margin()
    noise = rows.noise(kept.groups, 0).to(rows.top.dtype)
    scores = kept.sums.log() + noise
    at = scores.argmax(dim=1, keepdim=True)
    groups = kept.groups.expand_as(scores)
    group = groups.gather(1, at)
    own = (kept.fewest.gather(1, at).log() + noise.gather(1, at))[:, 0]
    most = scores if kept.most is kept.sums else kept.most.log() + noise
    others = most.masked_fill(groups == group, -math.inf).amax(dim=1)
    logits, ids = rows.groups.members(rows.index, group)
    values = rows.scaled(logits).double()
    noisy = values + rows.noise(ids, 1)
    at = noisy.masked_fill(values < limits.least[:, None], -math.inf).argmax(dim=1, keepdim=True)
    value = values.gather(1, at)[:, 0]
    best, gap = first_and_gap(noisy.masked_fill(values < limits.lowest[:, None], -math.inf))
    clear = (own - others > margin) & (gap > margin) & (best == at[:, 0]) & (value >= limits.sure)
    drawn = value - kept.total.log()
    return ids.gather(1, at)[:, 0], drawn.to(rows.top.dtype), ~clear & (margin >= 0)


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
