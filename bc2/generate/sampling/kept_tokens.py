"""Which tokens top-k, top-p and min-p keep.

Each of the three rules keeps the tokens at or above a number. Where few tokens are kept it is
found among the likeliest ones. Else a sample of the vocabulary tells between which two numbers it
lies, one pass over the vocabulary finds the tokens between them, and only those are put in order:
the vocabulary is never sorted.

All numbers are scaled logits: relative to the largest, after the temperature.

Shapes:
    R  sequences      V  vocabulary      N  groups of the vocabulary      M  tokens of a list
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bc2.generate.sampling.order_window import INTERVALS, Window, interval_sums, sums_after
from bc2.generate.sampling.token_groups import GROUP, Likelihoods, Rows, blocks, reduced

#: Candidates that are looked at first. Those of top-k with a larger k: the next number above k.
#: With still larger k, or where the candidates do not hold all that is kept, all tokens are.
CANDIDATES = (64, 512)

#: Tokens of the sample of a row.
SAMPLE = 8192

#: Standard deviations by which the sample may be off. Where it is off by more, all tokens are
#: looked at, which takes longer and finds the same.
DEVIATIONS = 4.0


class Limits(NamedTuple):
    """At or above what tokens are kept: scaled logits, fp64 [R] each."""

    least: Tensor
    """By the numbers."""
    lowest: Tensor
    """No token below it may be kept, whatever the tolerance leaves open."""
    sure: Tensor
    """Tokens at or above it are kept in any case. Not below `least`."""


class Kept(NamedTuple):
    """What is kept, and Σ exp(scaled logit) of it over each of n groups: [R, n]."""

    limits: Limits
    sums: Tensor
    """Of tokens at or above `Limits.least`."""
    most: Tensor
    """Of tokens at or above `Limits.lowest`."""
    fewest: Tensor
    """Of tokens at or above `Limits.sure`."""
    groups: Tensor
    """Which groups: int64 [R, n] or [n]; some may be there several times."""
    total: Tensor
    """Σ exp(scaled logit) of all tokens at or above `Limits.least`: fp64 [R]."""


class Order(Protocol):
    """Tokens of each row in the order of their scaled logits."""

    def ranked(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """The k-th largest number, and the next: [R] each."""

    def masses(self, k: Tensor, limit: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ exp of the numbers at or above `limit`, the k-th; of those at or above `lower`; and
        of the k largest: [R] each."""

    def reached(self, least: Tensor, most: Tensor, fewest: Tensor) -> tuple[Tensor, ...]:
        """The numbers at which Σ exp, from the largest on, reaches three masses [R]; for `fewest`
        the number after it. -inf if it does not."""


def limits_of(rows: Rows, order: Order, total: Tensor) -> Limits:
    """What the rules of rows keep.

    Args:
        total: Σ exp of all scaled logits, fp64 [R].
    """
    slack = rows.scaled_margin().clamp(min=0.0)
    k, none = rows.top_k(), torch.full_like(slack, -math.inf)
    by_k, masses = (none, none, none), (total, total, total)
    p = rows.setting("top_p").double()
    if bool((k > 0).any()):
        kth, after = (x.where(k > 0, none) for x in order.ranked(k))
        # A token is surely kept if what comes after the k-th is surely below it.
        by_k = kth, kth - slack, after + slack
        if bool(((k > 0) & (p < 1)).any()):
            found = order.masses(k, by_k[0], by_k[1])
            one, two, three = (x.where(k > 0, total) for x in found)
            masses = one, two, three
    by_p = (none, none, none)
    if bool((p < 1).any()):
        most, fewest = (p + slack) * masses[1], (p - slack) * masses[2]
        reached = order.reached(p * masses[0], most, fewest)
        least, lowest, highest = (x.where(p < 1, none) for x in reached)
        by_p = least, lowest - slack, highest + slack
    min_p = rows.setting("min_p").double().log()
    by_min = min_p, min_p - slack, min_p + slack
    least, lowest, sure = (
        torch.maximum(torch.maximum(a, b), c).to(rows.top.dtype).double()
        for a, b, c in zip(by_k, by_p, by_min, strict=True)
    )
    return Limits(least, lowest, torch.maximum(sure, least))


class Listed:
    """The likeliest tokens of rows, and what is kept if it is among them.

    Args:
        total: see `limits_of`.
    """

    def __init__(self, rows: Rows, count: int, total: Tensor):
        logits, self.ids = rows.groups.largest(rows.index, count)
        self.values = rows.scaled(logits).double()  # [R, M], descending
        self.likely = self.values.exp()
        self._reached = self.likely.cumsum(dim=1)
        self.limits = limits_of(rows, self, total)
        self._shape = len(logits), rows.groups.count
        self._dtype = rows.top.dtype
        #: Whether no token is missing that may be kept.
        self.enough = self.values[:, -1] < self.limits.lowest
        if count == rows.groups.x.shape[1]:
            self.enough = torch.ones_like(self.enough)
        else:
            # Nor one that may tie with the k-th, and so has a part in the sum for top-p.
            k, slack = rows.top_k(), rows.scaled_margin().clamp(min=0.0)
            tied = self.values[:, -1] >= self.ranked(k)[0] - slack
            self.enough &= (k == 0) | ~tied

    def ranked(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """See `Order`."""
        return self._value(k - 1), self._value(k)

    def masses(self, k: Tensor, limit: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Order`."""
        above, near = (
            self.likely.masked_fill(self.values < x[:, None], 0.0).sum(dim=1)
            for x in (limit, lower)
        )
        first = self._reached.gather(1, (k - 1).clamp(0, self.values.shape[1] - 1)[:, None])[:, 0]
        return above, near, first

    def reached(self, least: Tensor, most: Tensor, fewest: Tensor) -> tuple[Tensor, ...]:
        """See `Order`."""
        at = [(self._reached < mass[:, None]).sum(dim=1) for mass in (least, most, fewest)]
        return self._value(at[0]), self._value(at[1]), self._value(at[2] + 1)

    def _value(self, number: Tensor) -> Tensor:
        """The value with a number [R] in descending order; -inf beyond."""
        last = self.values.shape[1] - 1
        found = self.values.gather(1, number.clamp(0, last)[:, None])[:, 0]
        return found.masked_fill(number > last, -math.inf)

    def kept(self) -> Kept:
        """What is kept, of rows with `enough`."""
        groups = self.ids // GROUP
        none = torch.zeros(self._shape, dtype=torch.float64, device=groups.device)
        likely = [self.likely.masked_fill(self.values < x[:, None], 0.0) for x in self.limits]
        least, most, fewest = (
            none.scatter_add(1, groups, x).gather(1, groups).to(self._dtype) for x in likely
        )
        return Kept(self.limits, least, most, fewest, groups, likely[0].sum(dim=1))


@dataclass
class _Cut:
    """The tokens of rows at or above one number, and those between it and a lower one."""

    low: Tensor
    high: Tensor
    sums: Tensor
    """Σ exp over each group of the tokens at or above `high`: [R, N]."""
    count: Tensor
    """How many there are: fp64 [R]."""
    ids: Tensor
    """The tokens between: int64 [R, M]."""
    values: Tensor
    """Theirs: fp64 [R, M]; NaN beyond a row's last."""

    def weights(self, by_mass: bool) -> tuple[Tensor, Tensor]:
        """exp, or the number of tokens: of all above [R], and of each between [R, M]."""
        if by_mass:
            return _totals(self.sums), self.values.exp().nan_to_num_(0.0)
        return self.count, (~self.values.isnan()).double()

    def kept(self, limits: Limits) -> Kept:
        """What is kept, if `low` and `high` are around all limits."""
        every = torch.arange(self.sums.shape[1], device=self.ids.device)
        group = self.ids // GROUP
        likely = self.values.exp().to(self.sums.dtype)
        surely = self.values >= limits.sure[:, None]
        fewest = self.sums.scatter_add(1, group, likely.where(surely, 0.0))
        maybe = (self.values >= limits.lowest[:, None]) & ~surely
        row, column = maybe.nonzero().unbind(1)
        if not len(row):
            return Kept(limits, fewest, fewest, fewest, every, _totals(fewest))
        place, more = (row, group[row, column]), likely[row, column]
        most = fewest.index_put(place, more, accumulate=True)
        more = more.where(self.values[row, column] >= limits.least[row], 0.0)
        least = fewest.index_put(place, more, accumulate=True)
        return Kept(limits, least, most, fewest, every, _totals(least))


class Whole:
    """All tokens of rows, in an order of which only what is asked for is known."""

    def __init__(self, rows: Rows, likelihoods: Likelihoods):
        self.rows = rows
        self.likely, self.scaled = likelihoods.likely, likelihoods.scaled
        self.total = _totals(likelihoods.sums)
        self._size = self.scaled.shape[1]
        self._cut: _Cut | None = None

    def kept(self) -> Kept:
        """What is kept."""
        limits = limits_of(self.rows, self, self.total)
        cut = self._cut
        if cut is None or not bool(((cut.low <= limits.lowest) & (limits.sure <= cut.high)).all()):
            cut = self._split(limits.lowest, limits.sure)
        return cut.kept(limits)

    def ranked(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """See `Order`."""
        first = k.double().clamp(min=1)
        window = self._window(first, (first + 1).clamp(max=self._size), by_mass=False)
        return window.at(first), window.at(first, after=1)

    def masses(self, k: Tensor, limit: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Order`."""
        cut = self._split(lower, limit)
        above, between = cut.weights(by_mass=True)
        near = above + between.sum(dim=1)
        # Of those that tie with the k-th, the k largest have only some.
        return above, near, above - (cut.count - k) * limit.exp()

    def reached(self, least: Tensor, most: Tensor, fewest: Tensor) -> tuple[Tensor, ...]:
        """See `Order`."""
        window = self._window(fewest, most, by_mass=True)
        return window.at(least), window.at(most), window.at(fewest, after=1)

    def _window(self, fewest: Tensor, most: Tensor, by_mass: bool) -> Window:
        """The tokens at which the mass, or the number, of tokens reaches two numbers [R]."""
        low, high = self._guess(fewest, most, by_mass)
        cut = self._split(low, high)
        above, weights = cut.weights(by_mass)
        # What comes after the token that reaches `fewest` is needed too.
        size = torch.where(cut.values.isnan(), math.inf, weights)
        smallest = torch.nn.functional.pad(size, (0, 1), value=math.inf).amin(dim=1)
        found = above + weights.sum(dim=1)
        below = (found < most) | (found - smallest < fewest)
        wrong = (above >= fewest) | (below & ~low.isinf())
        if bool(wrong.any()):
            infinity = torch.full_like(low, math.inf)
            cut = self._split(low.where(~wrong, -infinity), high.where(~wrong, infinity))
            above, weights = cut.weights(by_mass)
        self._cut = cut
        window = Window(cut.values, weights, above, cut.low)
        window.narrow(fewest, most)
        return window

    def _guess(self, fewest: Tensor, most: Tensor, by_mass: bool) -> tuple[Tensor, Tensor]:
        """Between which numbers a window probably lies, from a sample."""
        step = max(1, self._size // SAMPLE)
        # Tokens far apart in the vocabulary, whose ids have all residues if the step is odd.
        step += 1 - step % 2
        sample = self.scaled[:, ::step]
        weights = self.likely[:, ::step] if by_mass else torch.ones_like(sample)
        width = sample.masked_fill(sample.isinf(), 0.0).amin(dim=1) / -INTERVALS
        tiny = torch.finfo(sample.dtype).tiny
        place = (sample / -width.clamp(min=tiny)[:, None]).clamp_(0, INTERVALS - 1).long()
        # What comes after each interval: tokens there are not likely, so a sample tells it well.
        scale = self._size / sample.shape[1]
        after = sums_after(interval_sums(place, weights)) * scale
        error = sums_after(interval_sums(place, weights.square())).sqrt() * (scale * DEVIATIONS)
        total = self.total if by_mass else torch.full_like(self.total, self._size)
        above = (after - error > (total - fewest)[:, None]).sum(dim=1)
        until = (after + error >= (total - most)[:, None]).sum(dim=1)
        high = (-width * above).masked_fill(above == 0, math.inf)
        low = (-width * (until + 1)).masked_fill(until >= INTERVALS - 1, -math.inf)
        return low, high

    def _split(self, low: Tensor, high: Tensor) -> _Cut:
        """The tokens at or above `high`, and those below it and at or above `low`: [R] each."""
        scaled, likely = self.scaled, self.likely
        parts = blocks(scaled)
        bottom, top = low.to(scaled.dtype), high.to(scaled.dtype)
        shape = parts[0].stop, self._size
        above, between = (torch.empty_like(scaled[: shape[0]]) for _ in range(2))
        sums = scaled.new_empty(len(scaled), self.rows.groups.count)
        count = torch.empty_like(self.total)
        found: list[Tensor] = []
        for part in parts:
            here = slice(0, part.stop - part.start)
            x = scaled[part]
            # Comparisons that give numbers are several times as fast as those that give bools.
            ge = torch.ge(x, top[part, None], out=above[here])
            inside = torch.ge(x, bottom[part, None], out=between[here]).sub_(ge)
            row, ids = inside.bool().nonzero().unbind(1)
            found += torch.split_with_sizes(ids, torch.bincount(row, minlength=len(x)).tolist())
            count[part] = ge.sum(dim=1)
            sums[part] = reduced(ge.mul_(likely[part]), torch.sum)
        numbers = torch.tensor([len(ids) for ids in found], device=scaled.device)
        ids = pad_sequence(found, batch_first=True)
        beyond = torch.arange(ids.shape[1], device=scaled.device) >= numbers[:, None]
        values = scaled.gather(1, ids).double().masked_fill_(beyond, math.nan)
        return _Cut(low, high, sums, count, ids, values)


def _totals(sums: Tensor) -> Tensor:
    """Σ over all groups [R, N]: fp64 [R]."""
    return sums.sum(dim=1, dtype=torch.float64)
