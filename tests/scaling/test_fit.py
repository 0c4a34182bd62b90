"""Fits against the truth, SciPy's curve_fit and published coefficients."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit, least_squares

from bc2.scaling.fit import HUBER, fit
from bc2.scaling.forms import FORMS
from bc2.scaling.forms.chinchilla import CHINCHILLA
from bc2.scaling.points import Conventions, Floats, Points
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


def random_points(form: str, seed: int) -> Points:
    """A ladder of 8 to 12 runs of random sizes, data and noise, and coefficients that vary."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(8, 13))
    params, ratio = np.exp(rng.uniform(16, 22, count)), np.exp(rng.uniform(1, 6, count))
    tokens, noise = params * ratio, np.exp(rng.choice([1e-3, 0.02]) * rng.standard_normal(count))
    flops, (e1, e2), low = 6 * params * tokens, rng.uniform(0.08, 0.5, 2), rng.uniform(0.5, 2.5)
    by_size, by_data = (params / 1e8) ** -e1, (tokens / 1e10) ** -e2
    loss = {
        "power": low + (flops / 1e19) ** -e1,
        "kaplan-n": 3 * by_size,
        "kaplan-d": 3 * by_data,
        "kaplan": 3 * (by_size ** (1 / e2) + by_data ** (1 / e2)) ** e2,
        "chinchilla": low + by_size + by_data,
    }[form]
    names = tuple(f"run-{i}" for i in range(count))
    return Points(names, params, tokens, flops, loss * noise, Conventions("nats", "total", "6ND"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
def test_no_random_start_finds_a_better_fit(form: str, seed: int) -> None:
    found = fit(FORMS[form], random_points(form, seed))
    problem, rng = found.problem, np.random.default_rng(seed)

    def errors(theta: Floats) -> Floats:
        return problem.form.log_loss(theta, problem.x) - problem.log_loss

    best = np.inf
    for _ in range(30):
        start = found.theta + rng.normal(0, 2, len(found.theta))
        best = min(best, least_squares(errors, start, method="lm", max_nfev=2000).cost)
    assert found.objective <= best * (1 + 1e-6) + 1e-15
    assert found.objective == pytest.approx(np.sum(found.errors**2) / 2, rel=1e-9)


def test_the_best_size_for_a_budget_is_that_of_a_search(synthetic: Synthetic) -> None:
    found = fit(FORMS["chinchilla"], synthetic("chinchilla", 50, 0.005))
    for flops in (1e18, 1e21, 1e26):
        params = np.geomspace(1e5, 1e14, 400_001)
        x = found.form.logs_of(params, flops / 6 / params, np.full_like(params, flops))
        best = params[np.argmin(found.log_loss(x))]
        log_params, log_tokens = CHINCHILLA.log_optimum(found.theta, found.center, flops)
        assert np.exp(log_params) == pytest.approx(best, rel=1e-3)
        assert np.exp(log_params + log_tokens) * 6 == pytest.approx(flops)
