"""Which forms points determine, held-out error, and the points that decide."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bc2.errors import DataError
from bc2.scaling.compare import choose_form, compare_forms, held_out, influential, undetermined
from bc2.scaling.fit import fit
from bc2.scaling.forms import FORMS
from bc2.scaling.intervals import Bootstrap, Profile, spread_of
from bc2.scaling.points import Conventions, Floats, Points
from bc2.scaling.points_file import read_points

Synthetic = Callable[..., Points]

EPOCH = (
    Path(os.environ.get("BC2_TEST_DATA", "../shared/data"))
    / "scaling"
    / "chinchilla_epoch_points.csv"
)


def ladder(params: list[float], tokens: list[float]) -> Points:
    n, d = np.array(params), np.array(tokens)
    loss = 1.8 + 400 / n**0.34 + 2000 / d**0.36
    names = tuple(f"run-{i}" for i in range(len(n)))
    return Points(names, n, d, 6 * n * d, loss, Conventions("nats", "total", "6ND"))


def test_the_papers_own_ladder_has_one_d() -> None:
    points = ladder([11.5e6, 51.6e6, 108e6, 308e6, 835e6, 1.57e9, 3.02e9], [1e12] * 7)
    assert choose_form(None, points).name == "power"
    assert choose_form("kaplan", points).name == "kaplan-n"
    reason = undetermined(FORMS["chinchilla"], points)
    assert reason == "chinchilla needs 3 values of D, and there are 1"
    with pytest.raises(DataError, match=r"--form power or kaplan-n would do"):
        choose_form("chinchilla", points)
    with pytest.raises(DataError, match="needs 2 values of D"):
        choose_form("kaplan-d", points)


def test_tokens_in_proportion_to_parameters_do_not_vary_apart() -> None:
    params = list(np.geomspace(1e7, 1e9, 8))
    together = ladder(params, [20 * n for n in params])
    assert choose_form(None, together).name == "power"
    assert "D goes with N" in str(undetermined(FORMS["chinchilla"], together))
    apart = ladder(params, [n * (20, 100)[i % 2] for i, n in enumerate(params)])
    assert choose_form(None, apart).name == "chinchilla"


def test_fewer_points_than_coefficients_plus_one() -> None:
    points = ladder([1e7, 2e7, 4e7], [1e9, 3e9, 2e9])
    with pytest.raises(DataError, match="power has 3 coefficients and needs 4 points") as caught:
        choose_form(None, points)
    assert "kaplan-n" in str(caught.value)
    with pytest.raises(DataError, match="add runs"):
        choose_form(None, ladder([1e7, 2e7], [1e9, 3e9]))


def test_the_largest_run_is_predicted_from_the_smaller(synthetic: Synthetic) -> None:
    points = synthetic("power", 7, noise=0.002)
    found = held_out(FORMS["power"], points, 0.8, None)
    assert found is not None
    largest = int(np.argmax(points.flops))
    assert (found.fitted, found.names) == (6, (points.names[largest],))
    left = fit(FORMS["power"], points.without([largest]))
    predicted = left.log_loss(left.form.logs(points))[largest]
    assert found.error == pytest.approx(abs(points.log_loss[largest] - predicted), rel=1e-6)


def test_forms_are_compared_best_first(synthetic: Synthetic) -> None:
    found = compare_forms(synthetic("chinchilla", 50, noise=0.002), 0.8, None)
    assert found[0].form == "chinchilla"
    assert [one.error for one in found] == sorted(one.error for one in found)
    assert {one.form for one in found} == set(FORMS)


def test_a_bent_point_is_named(synthetic: Synthetic) -> None:
    points = synthetic("power", 7, noise=0.001)
    bent = np.array(points.loss)
    largest = int(np.argmax(points.flops))
    bent[largest] *= 1.1
    points = Points(points.names, points.params, points.tokens, points.flops, bent,
                    points.conventions)  # fmt: skip
    found = influential(spread_of(fit(FORMS["power"], points)))
    assert found[0].names == (f"run-{largest}",)
    assert found[0].errors > 1


@pytest.mark.skipif(not EPOCH.exists(), reason=f"needs {EPOCH}")
def test_the_five_rows_that_bend_beta_are_named() -> None:
    points = read_points(EPOCH, [], "nats")
    found = influential(Bootstrap.of(fit(FORMS["chinchilla"], points), 100))
    assert found[0].names == ("row 2", "row 3", "row 4", "row 5", "row 6")
    assert found[0].symbol == "beta"
    assert found[0].value == pytest.approx(0.453, abs=1e-3)
    assert found[0].without == pytest.approx(0.367, abs=1e-3)


def with_loss(points: Points, loss: Floats) -> Points:
    return replace(points, loss=loss)


def test_losses_that_are_all_the_same_are_refused(synthetic: Synthetic) -> None:
    flat = with_loss(synthetic("chinchilla", 7), np.full(7, 3.0))
    with pytest.raises(DataError, match="all 7 points have the same loss, 3"):
        choose_form(None, flat)


def test_a_held_out_run_is_measured_where_the_others_have_no_noise_at_all(
    synthetic: Synthetic,
) -> None:
    loss = np.full(7, 3.0)
    points = synthetic("kaplan-n", 7)
    loss[np.argmax(points.flops)] = 2.9
    found = held_out(FORMS["kaplan-n"], with_loss(points, loss), 0.8, None)
    assert found is not None
    assert found.error == pytest.approx(np.log(3 / 2.9), rel=1e-3)
    assert found.intervals > 1


def test_an_outlier_that_hides_in_its_own_error_is_named() -> None:
    """With it no coefficient is determined, so that no standard error could name it."""
    points = ladder(
        list(np.geomspace(1e7, 3e9, 9)),
        list(np.geomspace(1e7, 3e9, 9) * [20, 100, 8, 60, 15, 150, 30, 5, 40]),
    )
    noise = 0.002 * np.random.default_rng(0).standard_normal(9)
    points = with_loss(points, points.loss * np.exp(noise))
    bent = points.loss.copy()
    bent[4] *= 10
    found = influential(Profile(fit(FORMS["chinchilla"], with_loss(points, bent))))
    assert [one.names for one in found] == [("run-4",)]
    without = fit(FORMS["chinchilla"], points.without([4])).coefficients
    assert found[0].without == pytest.approx(without[found[0].symbol], rel=1e-3)


def test_an_outlier_moves_no_held_out_interval_of_many_points(synthetic: Synthetic) -> None:
    """A Huber fit does not follow it; neither may the interval that the miss is measured in."""
    points = synthetic("chinchilla", 50, 0.002)
    bent = points.loss.copy()
    bent[7] *= 10
    clean = held_out(FORMS["chinchilla"], points, 0.8, None)
    found = held_out(FORMS["chinchilla"], with_loss(points, bent), 0.8, None)
    assert clean is not None
    assert found is not None
    assert found.error == pytest.approx(clean.error, rel=0.2)
    assert found.intervals == pytest.approx(clean.intervals, rel=0.2)
