"""Means of benchmark scores, how far they may be off, and whether they differ from chance.

In all formulas n is the number of samples, s_i the value of one, m their mean, G the number
of clusters (subjects).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

#: Confidence of intervals and of the label "near chance".
LEVEL = 0.95


class ScoreInterval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


def mean(values: Sequence[float]) -> float:
    """The plain mean, summed in the order of the values, as lm-eval sums it.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("the mean of no values")
    return sum(values) / len(values)


def mean_of_subjects(values: Sequence[float], sizes: Sequence[int], *, weighted: bool) -> float:
    """The value of a suite of subjects, as lm-eval's groups have it.

    Args:
        values: of the subjects.
        sizes: samples of the subjects.
        weighted: True is the mean over all samples (each subject counts as often as it has
            samples); False the mean over subjects (all count the same).

    Raises:
        ValueError: there are no values.
    """
    weights = list(sizes) if weighted else [1] * len(values)
    if not sum(weights):
        raise ValueError("the mean of no subjects")
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def standard_error(values: Sequence[float]) -> float | None:
    """sqrt(sum (s_i - m)^2 / (n - 1) / n); None for fewer than two values.

    With n - 1, as lm-eval and Miller (2024): the variance is estimated around a mean that is
    estimated from the same values, and with n it would come out too small.
    """
    n = len(values)
    if n < 2:
        return None
    return float(np.std(np.asarray(values, np.float64), ddof=1)) / math.sqrt(n)


def clustered_standard_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """The standard error of the mean over all samples where those of a cluster go together.

    After Miller (2024), "Adding Error Bars to Evals": sqrt(sum over clusters of sum_i sum_j
    (s_i - m)(s_j - m)) / n, here times sqrt(G / (G - 1)). The factor is to clusters what n - 1
    is to samples, and is what statsmodels uses: with clusters of one sample the result is
    `standard_error`, with clusters of one size `standard_error` of the clusters' means.
    Without it the error is too small by 5% for ten subjects, and by 0.7% for CMMLU's 67.

    Returns:
        None for fewer than two clusters: nothing is then known of how clusters differ, while
        the formula gives 0.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    if len(names) < 2:
        return None
    deviations = np.asarray(values, np.float64) - np.mean(values, dtype=np.float64)
    # sum_i sum_j a_i a_j of a cluster is the square of its sum.
    sums = np.bincount([names[cluster] for cluster in clusters], weights=deviations)
    corrected = len(names) / (len(names) - 1)
    return math.sqrt(corrected * float(np.square(sums).sum())) / len(values)


def unclustered_standard_error(errors: Sequence[float | None]) -> float | None:
    """The standard error of a mean over subjects: sqrt(sum e_i^2) / G, as lm-eval has it.

    Subjects count as given, not as drawn from more of them: see `clustered_standard_error`.

    Args:
        errors: the standard errors of the subjects; None if one is unknown gives None.
    """
    known = [error for error in errors if error is not None]
    if not known or len(known) < len(errors):
        return None
    return math.sqrt(sum(error**2 for error in known)) / len(known)


def score_interval(
    values: Sequence[float],
    score: float,
    stderr: float | None,
    *,
    clusters: int = 0,
    level: float = LEVEL,
) -> ScoreInterval | None:
    """The confidence interval of a score.

    Right-or-wrong values (0 and 1) get Wilson's, which holds for few samples too. Where all
    answers are equal the standard error is 0, and no interval may be built on it: 0 of 10 right
    says only that the model is right in less than 28% of cases. Samples that go together count
    as fewer than they are: as many as would have `stderr` if they were independent.

    Args:
        values: of all samples; `score` is their mean, or the mean of their subjects.
        clusters: over which `stderr` was taken; 0 if it was taken over samples. Few of them
            make the interval wider (Student's t).

    Returns:
        None where it cannot be said: no standard error, and values other than 0 and 1.
    """
    if all(value in (0, 1) for value in values):
        independent = _independent(len(values), score, stderr)
        return wilson_interval(score, independent, t_quantile(clusters - 1, level))
    if stderr is None:
        return None
    reach = t_quantile((clusters or len(values)) - 1, level) * stderr
    return ScoreInterval(score - reach, score + reach)


def _independent(n: int, score: float, stderr: float | None) -> float:
    """How many independent samples have this standard error; never more than there are."""
    return min(n, 1 + score * (1 - score) / stderr**2) if stderr else n


def wilson_interval(share: float, n: float, quantile: float) -> ScoreInterval:
    """Wilson's score interval of a proportion: the p with |share - p| <= q sqrt(p (1 - p) / n).

    Args:
        n: samples; need not be whole.
        quantile: q, 1.96 for 95%.
    """
    q2 = quantile**2
    center = (share + q2 / (2 * n)) / (1 + q2 / n)
    half = quantile * math.sqrt(share * (1 - share) / n + q2 / (4 * n * n)) / (1 + q2 / n)
    # At 0 and 1 the bound is exact; rounding must not take it away.
    low = 0.0 if share == 0 else max(0.0, center - half)
    high = 1.0 if share == 1 else min(1.0, center + half)
    return ScoreInterval(low, high)


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """q with P(|T| <= q) = level for Student's t; for the normal distribution below 1 `freedom`."""
    from scipy.special import ndtri, stdtrit

    tail = (1 + level) / 2
    return float(stdtrit(freedom, tail) if freedom > 0 else ndtri(tail))


def near_chance(interval: ScoreInterval | None, chance: float | None) -> bool:
    """Whether a score cannot be told from guessing: two-sided, at the interval's level.

    A score far below chance is no guessing either: labels or format are wrong, as a rule.
    """
    return interval is not None and chance is not None and interval.low <= chance <= interval.high
