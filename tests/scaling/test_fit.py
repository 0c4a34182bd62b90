"""Fits against the truth, SciPy's curve_fit and published coefficients."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit

from bc2.scaling.fit import HUBER, fit
from bc2.scaling.forms import FORMS
from bc2.scaling.points import Points
from bc2.scaling.points_file import read_points

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "scaling"
EPOCH = DATA / "chinchilla_epoch_points.csv"
Synthetic = Callable[..., Points]
needs_data = pytest.mark.skipif(not EPOCH.exists(), reason=f"needs {EPOCH}")


@pytest.mark.parametrize("count", [7, 50])
@pytest.mark.parametrize("form", FORMS)
def test_points_on_a_law_give_its_coefficients(
    form: str, count: int, synthetic: Synthetic, truth: dict[str, dict[str, float]]
) -> None:
    found = fit(FORMS[form], synthetic(form, count))
    assert found.coefficients == pytest.approx(truth[form], rel=2e-3)
    assert found.objective < 1e-11
    assert np.isinf(found.huber) == (count == 7)


def test_few_points_are_fitted_as_curve_fit_does(synthetic: Synthetic) -> None:
    points = synthetic("power", 7, noise=0.005)
    found = fit(FORMS["power"], points)

    def log_law(flops, height, rate, low):  # type: ignore[no-untyped-def]
        return np.log(np.exp(low) + np.exp(height) * (flops / 1e19) ** -rate)

    start = (0.5, 0.15, 0.5)
    (height, rate, low), _ = curve_fit(log_law, points.flops, points.log_loss, start)
    expected = {"L_inf": np.exp(low), "a": np.exp(height) * 1e19**rate, "b": -rate}
    assert found.coefficients == pytest.approx(expected, rel=1e-4)


@needs_data
def test_the_published_refit_of_chinchilla() -> None:
    points = read_points(EPOCH, ["tokens_per_param > 0.41"], "nats")
    assert len(points) == 240
    found = fit(FORMS["chinchilla"], points)
    published = json.loads((DATA / "published_coefficients.json").read_text())
    epoch = published["besiroglu2024_epoch"]
    for symbol, error in epoch["se"].items():
        assert abs(found.coefficients[symbol] - epoch[symbol]) < error, symbol
    assert found.objective == pytest.approx(epoch["objective_at_optimum"], rel=1e-7)
    assert found.huber == HUBER
    assert found.reached >= found.starts - 1


@needs_data
def test_all_rows_of_the_published_table() -> None:
    found = fit(FORMS["chinchilla"], read_points(EPOCH, [], "nats"))
    assert found.coefficients["beta"] == pytest.approx(0.453, abs=5e-4)
    assert found.objective == pytest.approx(0.00182601, rel=1e-5)


def test_the_objective_is_a_sum(synthetic: Synthetic) -> None:
    points = synthetic("power", 50, noise=0.005)
    found = fit(FORMS["power"], points)
    errors = np.abs(found.errors)
    huber = np.where(errors <= HUBER, errors**2 / 2, HUBER * (errors - HUBER / 2))
    assert found.objective == pytest.approx(huber.sum(), rel=1e-12)


def test_no_neighbour_is_better(synthetic: Synthetic) -> None:
    points = synthetic("chinchilla", 50, noise=0.005)
    found = fit(FORMS["chinchilla"], points)
    rng = np.random.default_rng(1)
    for scale in (1e-5, 1e-4, 1e-3, 1e-2):
        for _ in range(200):
            near = found.theta + scale * rng.standard_normal(5)
            assert found.problem.objective(near)[0] >= found.objective * (1 - 1e-9)


def test_units_of_the_variables_change_nothing(synthetic: Synthetic) -> None:
    points = synthetic("chinchilla", 50, noise=0.005)
    millions = Points(
        points.names, points.params / 1e6, points.tokens / 1e9, points.flops / 1e15, points.loss,
        points.conventions,
    )  # fmt: skip
    one, other = (fit(FORMS["chinchilla"], each) for each in (points, millions))
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    for symbol in ("E", "alpha", "beta"):
        assert other.coefficients[symbol] == pytest.approx(one.coefficients[symbol], rel=1e-5)
