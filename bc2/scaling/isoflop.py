"""The size with the least loss for each compute budget, and how it grows (Hoffmann et al. 2022,
approach 2).

A parabola through a budget's points is biased even without noise, since the valley is not
symmetric in log N (arXiv 2603.22339). The optimum here is the minimum of an Akima interpolant,
as in Porian et al. 2024 (arXiv 2406.19146); the parabola's is given beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator
from scipy.stats import linregress
from scipy.stats import t as student

from bc2.console import note
from bc2.errors import DataError
from bc2.scaling.intervals import Interval
from bc2.scaling.points import Floats, Points

#: Budgets that differ by less than this share are one: tables are rounded.
_SAME_BUDGET = 0.01

_FEWEST = 5
"""Points of a budget: an Akima interpolant of fewer is a guess."""


@dataclass(frozen=True)
class Optima:
    """For each budget the best size, columns of equal length m."""

    flops: Floats
    params: Floats
    tokens: Floats
    loss: Floats | None = None
    """At the optimum; None if the table does not say."""
    parabola: Floats | None = None
    """The size by a parabola through the five points around the lowest, for comparison."""
    left_out: tuple[float, ...] = ()
    """Budgets of too few sizes, or whose lowest point is their smallest or largest: the optimum
    lies outside."""


@dataclass(frozen=True)
class Growth:
    """``value = scale * C^exponent``."""

    exponent: Interval
    scale_interval: Interval

    def at(self, flops: float) -> float:
        return float(self.scale_interval.value * flops**self.exponent.value)


def find_optima(points: Points) -> Optima:
    """The optimum of each budget.

    Raises:
        DataError: fewer than two budgets have enough sizes and their optimum between the smallest
            and the largest.
    """
    found, left_out = [], []
    for budget in _budgets(points):
        one = _by_size(points.take(budget))
        lowest = int(np.argmin(one.loss))
        flops = float(np.exp(one.logs("flops").mean()))
        if len(one) < _FEWEST or lowest in (0, len(one) - 1):
            left_out.append(flops)
        else:
            found.append((flops, *_valley(one), _parabola(one, lowest)))
    if len(found) < 2:
        raise DataError(
            f"{len(found)} budgets of {len(found) + len(left_out)} have {_FEWEST} sizes or more "
            "and their least loss between the smallest and the largest; an IsoFLOP law needs two",
            todo="add runs of equal flops, or take another --form",
        )
    if left_out:
        budgets = ", ".join(f"{flops:.3g}" for flops in left_out)
        note(
            f"budgets left out, of fewer than {_FEWEST} sizes or with their least loss at an end "
            f"of them: {budgets}"
        )
    flops, params, tokens, loss, parabola = np.array(found).T
    return Optima(flops, params, tokens, loss, parabola, tuple(left_out))


def growth(flops: Floats, values: Floats, level: float) -> Growth:
    """How the best size or data grows with compute: a line through logarithms."""
    found = linregress(np.log(flops), np.log(values))
    freedom = len(flops) - 2
    t = float(student.ppf((1 + level) / 2, freedom)) if freedom else np.inf
    exponent = _interval(found.slope, t * found.stderr if freedom else np.inf)
    scale = _interval(found.intercept, t * found.intercept_stderr if freedom else np.inf)
    ends = (float(np.exp(end)) if end < 700 else np.inf for end in
            (scale.value, scale.low, scale.high))  # fmt: skip
    return Growth(exponent, Interval(*ends))


def _interval(value: float, reach: float) -> Interval:
    return Interval(float(value), float(value - reach), float(value + reach))


def _budgets(points: Points) -> list[NDArray[np.intp]]:
    order = points.by_flops()
    jumps = np.flatnonzero(np.diff(points.logs("flops")[order]) > _SAME_BUDGET) + 1
    return np.split(order, jumps)


def _by_size(points: Points) -> Points:
    """One point a size, in their order; repeats (other seeds) count as their geometric mean."""
    sizes, first, group = np.unique(
        np.round(points.logs("params"), 9), return_index=True, return_inverse=True
    )
    mean = np.bincount(group, points.log_loss) / np.bincount(group)
    one = points.take(first)
    return replace(one, loss=np.exp(mean)) if len(sizes) < len(points) else one


def _valley(one: Points) -> tuple[float, float, float]:
    """Size, tokens and loss at the minimum of the interpolant."""
    x = one.logs("params")
    curve = Akima1DInterpolator(x, one.loss)
    at = np.linspace(x[0], x[-1], 4001)
    best = int(np.argmin(curve(at)))
    tokens = np.interp(at[best], x, one.logs("tokens"))
    return float(np.exp(at[best])), float(np.exp(tokens)), float(curve(at[best]))


def _parabola(one: Points, lowest: int) -> float:
    near = slice(max(0, lowest - 2), lowest + 3)
    x = one.logs("params")[near]
    bend, slope, _ = np.polyfit(x - x.mean(), one.loss[near], 2)
    return float(np.exp(x.mean() - slope / 2 / bend)) if bend > 0 else np.nan
