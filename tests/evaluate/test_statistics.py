"""Standard errors and intervals against their definitions, closed forms, scipy and lm-eval."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bc2.evaluate.statistics import (
    clustered_standard_error,
    mean,
    mean_of_subjects,
    near_chance,
    score_interval,
    standard_error,
    t_quantile,
    unclustered_standard_error,
    wilson_interval,
)

VALUES = st.floats(-100, 100, allow_nan=False)
CLUSTERED = st.lists(st.tuples(VALUES, st.integers(0, 6)), min_size=2, max_size=60).filter(
    lambda pairs: len({cluster for _, cluster in pairs}) > 1
)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def double_sum(values: list[float], clusters: list[int]) -> float:
    """The definition, pair by pair."""
    m = statistics.fmean(values)
    total = sum(
        (a - m) * (b - m)
        for a, c in zip(values, clusters, strict=True)
        for b, d in zip(values, clusters, strict=True)
        if c == d
    )
    g = len(set(clusters))
    return math.sqrt(max(total, 0) * g / (g - 1)) / len(values)


@given(CLUSTERED)
@settings(deadline=None)
def test_clustered_error_is_its_double_sum(pairs: list[tuple[float, int]]) -> None:
    values, clusters = map(list, zip(*pairs, strict=True))
    found = clustered_standard_error(values, clusters)
    # Of the variance, since a root makes much of the rounding of a sum that is zero.
    assert found is not None
    assert found**2 == close(double_sum(values, clusters) ** 2)


@given(st.lists(VALUES, min_size=2, max_size=60))
def test_clusters_of_one_sample_are_no_clusters(values: list[float]) -> None:
    found = clustered_standard_error(values, range(len(values)))
    assert found == close(statistics.stdev(values) / math.sqrt(len(values)))


@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=2, max_size=20))
def test_clusters_of_one_size_are_samples_of_their_means(found: list[list[float]]) -> None:
    values = [value for cluster in found for value in cluster]
    clusters = [number for number, cluster in enumerate(found) for _ in cluster]
    means = [statistics.fmean(cluster) for cluster in found]
    expected = statistics.stdev(means) / math.sqrt(len(means))
    assert clustered_standard_error(values, clusters) == close(expected)


@given(CLUSTERED, st.randoms(use_true_random=False))
def test_clustered_error_knows_no_order_nor_name(
    pairs: list[tuple[float, int]], rng: random.Random
) -> None:
    shuffled = rng.sample(pairs, len(pairs))
    one = clustered_standard_error(*zip(*pairs, strict=True))
    other = clustered_standard_error(
        [value for value, _ in shuffled], [f"subject {cluster}" for _, cluster in shuffled]
    )
    assert one is not None
    assert other is not None
    assert one**2 == close(other**2)


def test_clustered_error_by_hand() -> None:
    # Mean 1/2; sums of the clusters 1 and -1: sqrt(2 * (1 + 1)) / 4.
    assert clustered_standard_error([1, 1, 0, 0], ["a", "a", "b", "b"]) == close(0.5)
    # What differs within clusters only is no error of their mean.
    assert clustered_standard_error([1, 0, 1, 0], ["a", "a", "b", "b"]) == 0
    assert clustered_standard_error([1, 0, 1], ["a", "a", "a"]) is None


def test_clustered_error_covers_the_truth() -> None:
    """Of suites drawn with subjects of different levels, 95% of intervals hold the truth."""
    rng = random.Random(5)
    covered = ordinary = 0
    for _ in range(400):
        values, clusters = [], []
        for subject in range(30):
            level = rng.uniform(0.2, 0.8)
            values += [float(rng.random() < level) for _ in range(40)]
            clusters += [subject] * 40
        stderr = clustered_standard_error(values, clusters)
        interval = score_interval(values, mean(values), stderr, clusters=30)
        assert interval is not None
        covered += near_chance(interval, 0.5)
        ordinary += near_chance(score_interval(values, mean(values), standard_error(values)), 0.5)
    # Two standard errors of a share of 400 are 2.2 points.
    assert covered / 400 == pytest.approx(0.95, abs=0.022)
    assert ordinary / 400 < 0.8


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=50))
def test_error_of_shares(values: list[float]) -> None:
    p, n = statistics.fmean(values), len(values)
    assert standard_error(values) == close(math.sqrt(p * (1 - p) / (n - 1)))


def test_error_of_one_value_is_not_known() -> None:
    assert standard_error([1.0]) is None
    assert unclustered_standard_error([0.1, None]) is None
    assert unclustered_standard_error([]) is None
    with pytest.raises(ValueError, match="no values"):
        mean([])
    with pytest.raises(ValueError, match="no subjects"):
        mean_of_subjects([], [], weighted=True)


@given(st.lists(VALUES, min_size=2, max_size=30), st.data())
def test_means_and_errors_are_those_of_lm_eval(values: list[float], data: st.DataObject) -> None:
    from lm_eval.api import metrics

    sizes = data.draw(st.lists(st.integers(1, 99), min_size=len(values), max_size=len(values)))
    assert mean(values) == metrics.mean(values)
    assert standard_error(values) == close(metrics.mean_stderr(values))
    for weighted in (True, False):
        ours = mean_of_subjects(values, sizes, weighted=weighted)
        assert ours == metrics.aggregate_subtask_metrics(values, sizes, weighted)
    errors = [abs(value) for value in values]
    ours = unclustered_standard_error(errors)
    assert ours == close(float(metrics.unweighted_mean_stderr(errors)))


@given(st.integers(1, 200), st.data())
def test_wilson_is_scipys(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    ours = wilson_interval(right / n, n, t_quantile(0))
    theirs = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert ours == (close(theirs.low), close(theirs.high))


@pytest.mark.parametrize("freedom", [1, 2, 8, 56])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_quantile_is_students(freedom: int, level: float) -> None:
    assert t_quantile(freedom, level) == close(stats.t.interval(level, freedom)[1])
    assert t_quantile(0, level) == close(stats.norm.interval(level)[1])


def test_equal_answers_leave_an_error() -> None:
    none_right = score_interval([0] * 10, 0.0, 0.0)
    all_right = score_interval([1] * 10, 1.0, 0.0, clusters=2)
    assert none_right == (0.0, close(0.2775327998628892))
    assert all_right is not None
    assert all_right.high == 1.0
    assert all_right.low < 0.75  # two clusters say little
    # One answer says next to nothing.
    assert score_interval([1.0], 1.0, None) == (close(0.20654931437723745), 1.0)


def test_samples_that_go_together_count_less() -> None:
    values = [1.0] * 50 + [0.0] * 50
    alone = score_interval(values, 0.5, standard_error(values))
    together = score_interval(values, 0.5, 0.1, clusters=1000)
    assert alone == wilson_interval(0.5, 100, t_quantile(0))
    # As many independent samples as have the standard error 0.1: 0.25 / 0.01 + 1.
    assert together == (close(wilson_interval(0.5, 26, t_quantile(999)).low), close(together[1]))


def test_interval_of_other_values_is_students() -> None:
    values = [0.5, 2.0, 3.5, 4.0]
    expected = stats.t.interval(0.95, 3, loc=2.5, scale=stats.sem(values))
    found = score_interval(values, 2.5, standard_error(values))
    assert found == tuple(map(close, map(float, expected)))
    assert score_interval([0.5], 0.5, None) is None


def test_near_chance_is_two_sided() -> None:
    near = {}
    for right in range(101):
        values = [1.0] * right + [0.0] * (100 - right)
        near[right] = near_chance(score_interval(values, right / 100, None), 0.25)
    # Wilson's interval holds the shares that a score test does not reject.
    expected = {
        right: abs(right / 100 - 0.25) <= 1.959963984540054 * math.sqrt(0.25 * 0.75 / 100)
        for right in range(101)
    }
    assert near == expected
    assert not near[5]
    assert not near_chance(None, 0.25)
    assert not near_chance(score_interval([0.0, 1.0], 0.5, None), None)
