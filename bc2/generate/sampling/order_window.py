"""A part of a long list, in order, where sums over its largest numbers reach what is looked for.

Shapes:
    R  lists      M  numbers of a part
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Between two numbers, numbers are divided into this many intervals, until there are this few.
INTERVALS, FEW = 1024, 1024


class Window:
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
        self._joined = False

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
        sums = interval_sums(place, self.weights.where(self._has, 0.0))
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
        number = interval_sums(place, self._has.double())
        weights = interval_sums(place, self.weights.where(self._has, 0.0))
        inner = place.where(self._has, INTERVALS)
        ends = [
            self.values.new_zeros(len(place), INTERVALS + 1).scatter_reduce(
                1, inner, self.values, how, include_self=False
            )[:, :-1]
            for how in ("amin", "amax")
        ]
        joined = (ends[0] == ends[1]) & (number > 2)
        last = weights / number.clamp(min=1)
        self._joined = True
        has = self._has & ~joined.gather(1, place)
        self._has = torch.cat([has, joined, joined], dim=1)
        self.values = torch.cat([self.values, ends[0], ends[0]], dim=1)
        self.weights = torch.cat([self.weights, weights - last, last], dim=1)

    def _order(self) -> None:
        self._counts = self._has.sum(dim=1)
        values = self.values.masked_fill(~self._has, -math.inf)
        count = max(1, int(self._counts.max()))
        if self._joined:  # what is joined must stay in its order
            table, order = values.sort(dim=1, descending=True, stable=True)
            self._table, order = table[:, :count], order[:, :count]
        else:
            self._table, order = values.topk(count, dim=1)
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


def interval_sums(place: Tensor, weights: Tensor) -> Tensor:
    """Σ of weights [R, M] over each interval, by its number [R, M]: [R, INTERVALS]."""
    rows = len(place)
    at = place + torch.arange(0, rows * INTERVALS, INTERVALS, device=place.device)[:, None]
    sums = torch.bincount(at.flatten(), weights.flatten(), minlength=rows * INTERVALS)
    return sums.view(rows, -1)


def sums_after(sums: Tensor) -> Tensor:
    """Σ of what comes after each interval: [R, INTERVALS]."""
    return sums.flip(1).cumsum(dim=1).flip(1) - sums
