"""Optima of budgets against the published ones of 15 settings."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bc2.errors import DataError
from bc2.scaling.fit import fit
from bc2.scaling.forms.chinchilla import CHINCHILLA
from bc2.scaling.isoflop import find_optima, growth
from bc2.scaling.points import Conventions, Floats, Points
from bc2.scaling.points_file import read_points

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "scaling"
COLUMNS = ("dataset", "hparams", "warmup", "decay", "param_count", "split")
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"needs {DATA}")


def budget(flops: float, best: float, bend: float = 0.05, sizes: int = 7) -> Points:
    """A symmetric valley in log N."""
    params = best * np.geomspace(0.2, 4, sizes)
    loss = 3 + bend * np.log(params / best) ** 2
    names = tuple(f"{flops:g}-{i}" for i in range(sizes))
    columns = (params, flops / 6 / params, np.full(sizes, flops), loss)
    return Points(names, *columns, Conventions("nats", "total", "6ND"))


def joined(*budgets: Points) -> Points:
    columns = (
        np.concatenate([getattr(one, name) for one in budgets])
        for name in ("params", "tokens", "flops", "loss")
    )
    names = tuple(name for one in budgets for name in one.names)
    return Points(names, *columns, budgets[0].conventions)


def test_valleys_give_their_minima_and_exponents() -> None:
    flops = np.array([1e18, 1e19, 1e20])
    found = find_optima(joined(*(budget(c, 1e8 * (c / 1e18) ** 0.5) for c in flops)))
    assert found.params == pytest.approx(1e8 * (flops / 1e18) ** 0.5, rel=0.02)
    assert found.parabola == pytest.approx(1e8 * (flops / 1e18) ** 0.5, rel=1e-6)
    assert 6 * found.params * found.tokens == pytest.approx(flops)
    assert growth(found.flops, found.params, 0.8).exponent.value == pytest.approx(0.5, abs=0.01)


def test_a_budget_whose_best_size_is_at_an_end_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inside = [budget(1e18, 1e8), budget(1e19, 3e8)]
    edge = budget(1e20, 1e9).take(np.arange(4))
    found = find_optima(joined(*inside, edge))
    assert len(found.flops) == 2
    assert found.left_out == pytest.approx((1e20,))
    assert "1e+20" in capsys.readouterr().err
    with pytest.raises(DataError, match="1 budgets of 2"):
        find_optima(joined(inside[0], edge))


def settings() -> dict[str, dict[float, tuple[float, float]]]:
    """Setting -> budget -> published optimum and the standard deviation of its logarithm."""
    found: dict[str, dict[float, tuple[float, float]]] = {}
    with (DATA / "formll_optimal_pairs.csv").open() as stream:
        for row in csv.DictReader(stream):
            name = "/".join(row[column] for column in COLUMNS)
            pair = float(row["params_opt"]), float(row["params_opt_logstd"])
            found.setdefault(name, {})[float(row["flops"])] = pair
    return found


@needs_data
def test_published_optima_of_fifteen_settings() -> None:
    published = json.loads((DATA / "formll_published_fits.json").read_text())
    inside, exponents = [], {}
    for name, pairs in settings().items():
        conditions = [f"{c} = {v}" for c, v in zip(COLUMNS, name.split("/"), strict=True)]
        points = read_points(DATA / "formll_isoflop_points.csv", conditions, "nats")
        found = find_optima(points)
        ours = dict(zip(np.round(np.log(found.flops), 3), found.params, strict=True))
        for flops, (best, spread) in pairs.items():
            if np.isfinite(best):
                own = ours.get(np.round(np.log(flops), 3), np.inf)
                inside.append(abs(np.log(own / best)) <= 2 * spread)
        exponents[name] = growth(found.flops, found.params, 0.8).exponent.value
    assert len(inside) == 173  # four of the 177 rows have no published optimum
    assert np.mean(inside) >= 0.95
    assert len(exponents) == 15
    for name, exponent in exponents.items():
        assert exponent == pytest.approx(published[name]["basic"]["n_exponent"], abs=0.02), name


@needs_data
@pytest.mark.parametrize(
    ("convention", "params", "tokens"),
    [("Kaplan", 0.524, 0.479), ("Chinchilla", 0.366, 0.490), ("Transformer-only", 0.681, 0.397)],
)
def test_exponents_of_a_table_of_optima(convention: str, params: float, tokens: float) -> None:
    rows = [
        row
        for row in csv.DictReader((DATA / "nanochat_isoflop_optima.csv").open())
        if row["param_convention"] == f"{convention}-style"
    ]
    flops, size, data = (
        np.array([float(row[column]) for row in rows])
        for column in ("flops", "params_opt", "tokens_opt")
    )
    assert growth(flops, size, 0.8).exponent.value == pytest.approx(params, abs=1e-3)
    assert growth(flops, data, 0.8).exponent.value == pytest.approx(tokens, abs=1e-3)


def test_repeats_of_a_size_count_once() -> None:
    """Runs that differ in their seed have one size, and an interpolant one value at each."""
    one, other = budget(1e18, 1e8), budget(1e19, 3e8)
    repeat = replace(one, loss=one.loss * 1.01)
    names = (*one.names, *(f"{name}-again" for name in one.names), *other.names)
    points = replace(joined(one, repeat, other), names=names)
    alone = find_optima(joined(one, other))
    found = find_optima(points)
    assert found.params == pytest.approx(alone.params)
    assert found.loss is not None
    assert alone.loss is not None
    assert found.loss == pytest.approx(alone.loss * [1.01**0.5, 1])


def test_two_budgets_bound_no_exponent() -> None:
    found = growth(np.array([1e18, 1e19]), np.array([1e8, 3e8]), 0.8)
    assert found.exponent.value == pytest.approx(np.log10(3))
    for interval in (found.exponent, found.scale_interval):
        assert interval.as_json()["high"] is None


def valleys(size: float, data: float) -> tuple[Points, Floats, float]:
    """Chinchilla's law without noise on eight budgets, each from a sixteenth of the best size to
    sixteen times it; the best sizes, and their exponent."""
    sizes, losses, budgets = [], [], np.geomspace(1e18, 1e21, 8)
    ratio = (size * 482 / (data * 2085)) ** (1 / (size + data))
    for flops in budgets:
        best = ratio * (flops / 6) ** (data / (size + data))
        params = best * np.geomspace(1 / 16, 16, 9)
        sizes.append(params)
        losses.append(1.82 + 482 / params**size + 2085 / (flops / 6 / params) ** data)
    params, loss, flops = np.concatenate(sizes), np.concatenate(losses), np.repeat(budgets, 9)
    names = tuple(map(str, range(len(params))))
    points = Points(names, params, flops / 6 / params, flops, loss,
                    Conventions("nats", "total", "6ND"))  # fmt: skip
    return points, ratio * (budgets / 6) ** (data / (size + data)), data / (size + data)


def test_a_parabola_is_biased_without_noise_and_the_parametric_optimum_is_not() -> None:
    """arXiv 2603.22339: where size and data have other exponents, the valley is not symmetric in
    log N, and its parabola has another minimum, on exact losses too."""
    points, best, exponent = valleys(0.46, 0.28)
    found = find_optima(points)
    assert found.parabola is not None
    off = np.abs(found.parabola / best - 1)
    assert off.min() > 0.03
    assert np.abs(found.params / best - 1).max() < off.min()
    law = fit(CHINCHILLA, points)
    ours = np.exp(CHINCHILLA.log_optimum(law.theta, law.center, found.flops))[:, 0]
    assert ours == pytest.approx(best, rel=0.01)
    assert growth(found.flops, ours, 0.8).exponent.value == pytest.approx(exponent, abs=1e-3)
