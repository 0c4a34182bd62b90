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

from bc2.generate.token_groups import GROUP, Likelihoods, Rows, blocks, reduced

#: Candidates that are looked at first. Those of top-k with a larger k: the next number above k.
#: With still larger k, or where the candidates do not hold all that is kept, all tokens are.
CANDIDATES = (64, 512)

#: Tokens of the sample of a row.
SAMPLE = 8192

#: Standard deviations by which the sample may be off. Where it is off by more, all tokens are
#: looked at, which takes longer and finds the same.
DEVIATIONS = 4.0

#: Between two numbers, tokens are divided into this many intervals, until there are this few.
INTERVALS, FEW = 1024, 1024


class Limits(NamedTuple):
    """At or above what tokens are kept: scaled logits, fp64 [R] each."""

    least: Tensor
    """By the numbers."""
    lowest: Tensor
    """No token below it may be kept, whatever the tolerance leaves open."""
    sure: Tensor
    """Tokens at or above it are kept in any case. Not below `least`."""


class Kept(NamedTuple):
    """What is kept, and Σ exp(scaled logit) of it over each group: [R, N] each."""

    limits: Limits
    sums: Tensor
    """Of tokens at or above `Limits.least`."""
    most: Tensor
    """Of tokens at or above `Limits.lowest`."""
    fewest: Tensor
    """Of tokens at or above `Limits.sure`."""


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
        sums = [
            torch.zeros(self._shape, dtype=torch.float64, device=self.ids.device)
            .scatter_add_(
                1, self.ids // GROUP, self.likely.masked_fill(self.values < x[:, None], 0.0)
            )
            .to(self._dtype)
            for x in (self.limits.least, self.limits.lowest, self.limits.sure)
        ]
        return Kept(self.limits, sums[0], sums[1], sums[2])


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
            return self.sums.sum(dim=1, dtype=torch.float64), self.values.exp().nan_to_num_(0.0)
        return self.count, (~self.values.isnan()).double()

    def kept(self, limits: Limits) -> Kept:
        """What is kept, if `low` and `high` are around all limits."""
        group = self.ids // GROUP
        likely = self.values.exp().to(self.sums.dtype)
        surely = self.values >= limits.sure[:, None]
        fewest = self.sums.scatter_add(1, group, likely.where(surely, 0.0))
        maybe = (self.values >= limits.lowest[:, None]) & ~surely
        row, column = maybe.nonzero().unbind(1)
        if not len(row):
            return Kept(limits, fewest, fewest, fewest)
        place, more = (row, group[row, column]), likely[row, column]
        most = fewest.index_put(place, more, accumulate=True)
        more = more.where(self.values[row, column] >= limits.least[row], 0.0)
        return Kept(limits, fewest.index_put(place, more, accumulate=True), most, fewest)


class Whole:
    """All tokens of rows, in an order of which only what is asked for is known."""

    def __init__(self, rows: Rows, likelihoods: Likelihoods):
        self.rows = rows
        self.likely, self.scaled = likelihoods.likely, likelihoods.scaled
        self.total = likelihoods.sums.sum(dim=1, dtype=torch.float64)
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

    def _window(self, fewest: Tensor, most: Tensor, by_mass: bool) -> _Window:
        """The tokens at which the mass, or the number, of tokens reaches two numbers [R]."""
        low, high = self._guess(fewest, most, by_mass)
        cut = self._split(low, high)
        above, weights = cut.weights(by_mass)
        below = above + weights.sum(dim=1) < most
        wrong = (above >= fewest) | (below & ~low.isinf())
        if bool(wrong.any()):
            infinity = torch.full_like(low, math.inf)
            cut = self._split(low.where(~wrong, -infinity), high.where(~wrong, infinity))
            above, weights = cut.weights(by_mass)
        self._cut = cut
        window = _Window(cut.values, weights, above, cut.low)
        window.narrow(fewest, most)
        return window

    def _guess(self, fewest: Tensor, most: Tensor, by_mass: bool) -> tuple[Tensor, Tensor]:
        """Between which numbers a window probably lies, from a sample."""
        step = max(1, self._size // SAMPLE)
        # Tokens far apart in the vocabulary, whose ids have all residues if the step is odd.
        step += 1 - step % 2
        sample = self.scaled[:, ::step].double()
        weights = sample.exp() if by_mass else torch.ones_like(sample)
        width = sample.masked_fill(sample.isinf(), 0.0).amin(dim=1) / -INTERVALS
        place = (sample / -width.clamp(min=1e-300)[:, None]).clamp_(0, INTERVALS - 1).long()
        # What comes after each interval: tokens there are not likely, so a sample tells it well.
        scale = self._size / sample.shape[1]
        after = _after(_sums(place, weights)) * scale
        error = _after(_sums(place, weights.square())).sqrt() * (scale * DEVIATIONS)
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
        found = []
        for part in parts:
            here = slice(0, part.stop - part.start)
            x = scaled[part]
            # Comparisons that give numbers are several times as fast as those that give bools.
            ge = torch.ge(x, top[part, None], out=above[here])
            inside = torch.ge(x, bottom[part, None], out=between[here]).sub_(ge)
            found += [row.nonzero()[:, 0] for row in inside.bool()]
            count[part] = ge.sum(dim=1)
            sums[part] = reduced(ge.mul_(likely[part]), torch.sum)
        numbers = torch.tensor([len(ids) for ids in found], device=scaled.device)
        ids = pad_sequence(found, batch_first=True)
        beyond = torch.arange(ids.shape[1], device=scaled.device) >= numbers[:, None]
        values = scaled.gather(1, ids).double().masked_fill_(beyond, math.nan)
        return _Cut(low, high, sums, count, ids, values)


class _Window:
    """Tokens of rows that follow each other in the order of their scaled logits.

    Args:
        values: fp64 [R, M], in any order; NaN beyond a row's last.
        weights: fp64 [R, M].
        above: Σ of the weights of tokens above the window: fp64 [R].
        low: no number below it is in the window: [R].
    """

    def __init__(self, values: Tensor, weights: Tensor, above: Tensor, low: Tensor):
        self.values, self.weights, self.above, self.low = values, weights, above, low
        self._has = ~values.isnan()

    def narrow(self, fewest: Tensor, most: Tensor) -> None:
        """Leave what is needed to know where the weights reach two sums [R], and order it."""
        count = int(self._has.sum(dim=1).max())
        while count > FEW:
            self._narrow(fewest, most)
            before, count = count, int(self._has.sum(dim=1).max())
            if count > before // 2:
                self._join_equals()
                break
        self._order()

    def _narrow(self, fewest: Tensor, most: Tensor) -> None:
        place = self._intervals()
        sums = _sums(place, self.weights.where(self._has, 0.0))
        reached = sums.cumsum(dim=1) + self.above[:, None]
        first = (reached < fewest[:, None]).sum(dim=1, keepdim=True)
        last = (reached < most[:, None]).sum(dim=1, keepdim=True)
        # The next number after it is needed too.
        later = (sums > 0) & (torch.arange(INTERVALS, device=sums.device) > last)
        last = later.int().argmax(dim=1, keepdim=True).where(later.any(1, keepdim=True), INTERVALS)
        self._has &= (place >= first) & (place <= last)
        before = reached.gather(1, (first - 1).clamp(min=0))[:, 0]
        self.above = before.where(first[:, 0] > 0, self.above)

    def _intervals(self) -> Tensor:
        """The number of the interval of each token [R, M]: the largest numbers are in the first."""
        top = self.values.masked_fill(~self._has, -1e300).amax(dim=1, keepdim=True)
        end = self.values.masked_fill(~self._has | self.values.isinf(), 0.0)
        end = end.amin(dim=1, keepdim=True)
        place = (top - self.values).mul_((INTERVALS - 1) / (top - end).clamp(min=1e-300))
        return place.nan_to_num_(INTERVALS - 1).clamp_(0, INTERVALS - 1).long()

    def _join_equals(self) -> None:
        """Make two tokens of all that are equal in an interval: the others, and the last one."""
        place = self._intervals()
        number = _sums(place, self._has.double())
        weights = _sums(place, self.weights.where(self._has, 0.0))
        inner = place.where(self._has, INTERVALS)
        ends = [
            self.values.new_zeros(len(place), INTERVALS + 1).scatter_reduce(
                1, inner, self.values, how, include_self=False
            )[:, :-1]
            for how in ("amin", "amax")
        ]
        joined = (ends[0] == ends[1]) & (number > 2)
        last = weights / number.clamp(min=1)
        has = self._has & ~joined.gather(1, place)
        self._has = torch.cat([has, joined, joined], dim=1)
        self.values = torch.cat([self.values, ends[0], ends[0]], dim=1)
        self.weights = torch.cat([self.weights, weights - last, last], dim=1)

    def _order(self) -> None:
        self._counts = self._has.sum(dim=1)
        values = self.values.masked_fill(~self._has, -math.inf)
        self._table, order = values.topk(max(1, int(self._counts.max())), dim=1)
        weights = self.weights.where(self._has, 0.0).gather(1, order)
        self._reached = weights.cumsum(dim=1) + self.above[:, None]

    def at(self, reached: Tensor, after: int = 0) -> Tensor:
        """The value where the weights reach a sum [R], or the next one; -inf if they do not."""
        number = (self._reached < reached[:, None]).sum(dim=1) + after
        # The next one may be just below the window. It is at most as large as the last one here.
        last = (self._counts - 1).clamp(min=0)
        number = torch.where(self.low.isinf(), number, torch.minimum(number, last))
        found = self._table.gather(1, number.clamp(max=self._table.shape[1] - 1)[:, None])[:, 0]
        return found.masked_fill(number > last, -math.inf)


def _sums(place: Tensor, weights: Tensor) -> Tensor:
    """Σ of weights [R, M] over each interval, by its number [R, M]: [R, INTERVALS]."""
    rows = len(place)
    at = place + torch.arange(0, rows * INTERVALS, INTERVALS, device=place.device)[:, None]
    sums = torch.bincount(at.flatten(), weights.flatten(), minlength=rows * INTERVALS)
    return sums.view(rows, -1)


def _after(sums: Tensor) -> Tensor:
    """Σ of what comes after each interval: [R, INTERVALS]."""
    return sums.flip(1).cumsum(dim=1).flip(1) - sums
