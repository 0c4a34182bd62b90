"""Each form against its printed formula and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bc2.errors import UsageError
from bc2.scaling.forms import FORMS, form_of
from bc2.scaling.forms.chinchilla import CHINCHILLA
from bc2.scaling.points import Conventions, Floats, Points

#: The formulas as printed, in float64, of (coefficients by symbol, N, D, C).
PRINTED: dict[str, Callable[[dict[str, float], Floats, Floats, Floats], Floats]] = {
    "power": lambda c, _n, _d, flops: c["a"] * flops ** c["b"] + c["L_inf"],
    "kaplan-n": lambda c, n, _d, _c: (c["N_c"] / n) ** c["alpha_N"],
    "kaplan-d": lambda c, _n, d, _c: (c["D_c"] / d) ** c["alpha_D"],
    "kaplan": lambda c, n, d, _c: (
        ((c["N_c"] / n) ** (c["alpha_N"] / c["alpha_D"]) + c["D_c"] / d) ** c["alpha_D"]
    ),
    "chinchilla": lambda c, n, d, _c: c["E"] + c["A"] / n ** c["alpha"] + c["B"] / d ** c["beta"],
}


def some_points() -> Points:
    params = np.geomspace(1e7, 3e9, 9)
    tokens = params * np.array([20, 100, 8, 60, 15, 150, 30, 5, 40])
    return Points(
        tuple("abcdefghi"), params, tokens, 6 * params * tokens, np.full(9, 3.0),
        Conventions("nats", "total", "6ND"),
    )  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_is_its_printed_formula(name: str) -> None:
    form, points = FORMS[name], some_points()
    x = form.logs(points)
    center = x.mean(axis=0)
    for theta in list(form.starts(x - center, points.loss))[::7]:
        values = form.coefficients(theta, center)
        named = dict(zip(form.symbols, map(float, values), strict=True))
        printed = PRINTED[name](named, points.params, points.tokens, points.flops)
        assert np.exp(form.log_loss(theta, x - center)) == pytest.approx(printed, rel=1e-9)
    assert set(PRINTED) == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    form, points = FORMS[name], some_points()
    x = form.logs(points) - form.logs(points).mean(axis=0)
    for theta in list(form.starts(x, points.loss))[::7]:
        value, jacobian = form.value_and_jacobian(theta, x)
        assert value == pytest.approx(form.log_loss(theta, x), rel=1e-12)
        for place in range(len(theta)):
            step = np.zeros(len(theta))
            step[place] = 1e-6
            ends = form.log_loss(theta + step, x), form.log_loss(theta - step, x)
            assert jacobian[:, place] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=2e-6)


@pytest.mark.parametrize("name", FORMS)
def test_coefficients_of_many_thetas_are_those_of_each(name: str) -> None:
    form = FORMS[name]
    rng = np.random.default_rng(0)
    thetas = rng.normal(-1, 0.3, (4, len(form.symbols)))
    center = np.full(len(form.variables), 20.0)
    together = form.coefficients(thetas, center)
    assert together == pytest.approx(np.array([form.coefficients(t, center) for t in thetas]))


def test_optimum_has_the_least_loss_on_a_grid_of_sizes() -> None:
    # The coefficients of Hoffmann et al. 2022 with the budget of Gopher.
    flops = 5.76e23
    center = np.array([20.0, 23.0])
    theta = np.array([
        np.log(1.69), np.log(406.4) - 0.34 * 20, np.log(0.34), np.log(410.7) - 0.28 * 23,
        np.log(0.28),
    ])  # fmt: skip
    params, tokens = np.exp(CHINCHILLA.log_optimum(theta, center, flops))
    assert 6 * params * tokens == pytest.approx(flops)
    sizes = np.geomspace(1e9, 1e12, 200_001)
    x = np.log(np.stack([sizes, flops / 6 / sizes], axis=1)) - center
    best = sizes[np.argmin(CHINCHILLA.log_loss(theta, x))]
    assert params == pytest.approx(best, rel=1e-3)


def test_an_unknown_form_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no such form") as caught:
        form_of("chinchila")
    assert "'chinchilla'" in str(caught.value)
