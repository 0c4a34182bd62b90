"""Intervals against the textbook's for a straight line, and how often they cover the truth.

Kaplan's L(N) is a straight line in logarithms, so its intervals are known exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import linregress
from scipy.stats import t as student

from bc2.scaling.fit import fit
from bc2.scaling.forms import FORMS
from bc2.scaling.intervals import Bootstrap, Profile, law_at, spread_of
from bc2.scaling.points import Points

Synthetic = Callable[..., Points]

LEVEL = 0.8


def test_a_straight_line_has_the_interval_of_least_squares(synthetic: Synthetic) -> None:
    points = synthetic("kaplan-n", 7, noise=0.005)
    line = linregress(points.logs("params"), points.log_loss)
    reach = student.ppf(0.9, 5) * line.stderr
    found = Profile(fit(FORMS["kaplan-n"], points)).coefficient(1, LEVEL)
    assert found.value == pytest.approx(-line.slope, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(
        (-line.slope - reach, -line.slope + reach), rel=2e-3
    )


@pytest.mark.parametrize("measurement", [False, True])
def test_a_straight_line_has_the_prediction_interval_of_least_squares(
    measurement: bool, synthetic: Synthetic
) -> None:
    points = synthetic("kaplan-n", 7, noise=0.005)
    law = fit(FORMS["kaplan-n"], points)
    x, y = points.logs("params"), points.log_loss
    line = linregress(x, y)
    noise = np.sqrt(np.sum((y - line.intercept - line.slope * x) ** 2) / 5)
    at = np.log(3e10)
    share = 1 / 7 + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2) + measurement
    reach = student.ppf(0.9, 5) * noise * np.sqrt(share)
    low, high = Profile(law).log_bounds(
        law_at(law, np.array([at])), LEVEL, law.noise if measurement else None
    )
    middle = line.intercept + line.slope * at
    assert (low, high) == pytest.approx((middle - reach, middle + reach), abs=reach * 0.01)


def test_many_points_are_bootstrapped_and_few_are_profiled(synthetic: Synthetic) -> None:
    many = spread_of(fit(FORMS["power"], synthetic("power", 50, 0.005)), replicates=60)
    assert isinstance(many, Bootstrap)
    assert many.thetas.shape == (60, 3)
    assert isinstance(spread_of(fit(FORMS["power"], synthetic("power", 7, 0.005))), Profile)


def test_a_bootstrap_repeats_with_its_seed(synthetic: Synthetic) -> None:
    law = fit(FORMS["power"], synthetic("power", 50, 0.005))
    one, same, other = (Bootstrap.of(law, 60, seed).thetas for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_what_the_points_do_not_bound_is_open(synthetic: Synthetic) -> None:
    """The constant of a law whose points lie on a power without one may be 0."""
    points = synthetic("kaplan-d", 7, noise=0.01)
    spread = Profile(fit(FORMS["power"], points))
    constant = spread.coefficient(0, LEVEL)
    assert constant.low == 0
    assert constant.as_json()["low"] == 0
    assert 0 < constant.high < np.inf


def test_points_on_the_law_have_narrow_intervals(synthetic: Synthetic) -> None:
    spread = Profile(fit(FORMS["power"], synthetic("power", 7)))
    for place, value in enumerate(spread.fit.coefficients.values()):
        found = spread.coefficient(place, LEVEL)
        assert found.low <= value <= found.high
        assert found.high - found.low < 1e-3 * abs(value)


@pytest.mark.parametrize("form", FORMS)
def test_the_laws_own_gradient_is_that_of_differences(form: str, synthetic: Synthetic) -> None:
    law = fit(FORMS[form], synthetic(form, 7, 0.005))
    (x,) = law.form.logs_of(np.array([7e9]), np.array([2.6e12]), np.array([1e23]))
    quantity = law_at(law, x)
    step = 1e-5 * np.eye(len(law.theta))
    differences = (quantity(law.theta + step) - quantity(law.theta - step)) / 2e-5
    assert quantity.gradient(law.theta) == pytest.approx(differences, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("count", [7, 50])
def test_the_interval_of_a_huber_fit_is_around_it(count: int, synthetic: Synthetic) -> None:
    """It neither follows nor is widened by a point that the fit does not follow."""
    points = synthetic("kaplan-n", count, noise=0.005)
    bent = points.loss.copy()
    bent[2] *= 2
    ends = []
    for loss in (points.loss, bent):
        spread = Profile(fit(FORMS["kaplan-n"], replace(points, loss=loss), huber=0.003))
        found = spread.coefficient(1, LEVEL)
        assert found.low < found.value < found.high
        ends.append(found.high - found.low)
    assert ends[1] < 3 * ends[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_intervals_cover_the_truth(
    form: str, synthetic: Synthetic, law_value: Callable[..., float],
    truth: dict[str, dict[str, float]],
) -> None:  # fmt: skip
    """80% intervals of 200 synthetic ladders of 7 and of 50 points; a measurement is at 10 times
    the compute."""
    shares = []
    for count in (7, 50):
        hits = []
        for seed in range(200):
            points = synthetic(form, count, noise=0.005, seed=seed)
            spread = spread_of(fit(FORMS[form], points), replicates=120, seed=seed)
            row = []
            for place, symbol in enumerate(spread.fit.form.symbols):
                found = spread.coefficient(place, LEVEL)
                row.append(found.low <= truth[form][symbol] <= found.high)
            hits.append([*row, *_predictions(spread, form, law_value, seed)])
        shares.append(np.mean(hits, axis=0))
        print(form, count, shares[-1], [*FORMS[form].symbols, "law", "measurement"])
    assert np.all((np.array(shares) >= 0.70) & (np.array(shares) <= 0.90))
    assert 0.75 <= np.mean(shares) <= 0.85


def _predictions(spread, form: str, law_value: Callable[..., float], seed: int) -> list[bool]:  # type: ignore[no-untyped-def]
    points, law = spread.fit.points, spread.fit
    ratio = 10**0.5
    params, tokens = points.params.max() * ratio, points.tokens.max() * ratio
    scale = (10 * points.flops.max() / (6 * params * tokens)) ** 0.5
    params, tokens = params * scale, tokens * scale
    (x,) = law.form.logs_of(*(np.array([v]) for v in (params, tokens, 6 * params * tokens)))
    true = law_value(form, params, tokens, 6 * params * tokens)
    measured = true * np.exp(0.005 * np.random.default_rng(10_000 + seed).standard_normal())
    own = spread.interval(law_at(law, x), LEVEL)
    wide = spread.interval(law_at(law, x), LEVEL, law.noise)
    return [own.low <= true <= own.high, wide.low <= measured <= wide.high]
