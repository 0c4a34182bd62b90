"""Synthetic runs that follow a known law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bc2.scaling.points import Conventions, Points

#: Of each form, what the synthetic points follow.
TRUTH = {
    "power": {"L_inf": 1.7, "a": 1600.0, "b": -0.165},
    "kaplan-n": {"N_c": 8.8e13, "alpha_N": 0.076},
    "kaplan-d": {"D_c": 5.4e13, "alpha_D": 0.095},
    "kaplan": {"N_c": 6.4e13, "alpha_N": 0.076, "D_c": 1.8e13, "alpha_D": 0.103},
    "chinchilla": {"E": 1.82, "A": 482.0, "alpha": 0.348, "B": 2085.0, "beta": 0.366},
}


def true_loss(form: str, params, tokens, flops):  # type: ignore[no-untyped-def]
    c = TRUTH[form]
    if form == "power":
        return c["L_inf"] + c["a"] * flops ** c["b"]
    if form == "kaplan-n":
        return (c["N_c"] / params) ** c["alpha_N"]
    if form == "kaplan-d":
        return (c["D_c"] / tokens) ** c["alpha_D"]
    if form == "kaplan":
        size = (c["N_c"] / params) ** (c["alpha_N"] / c["alpha_D"])
        return (size + c["D_c"] / tokens) ** c["alpha_D"]
    return c["E"] + c["A"] / params ** c["alpha"] + c["B"] / tokens ** c["beta"]


def make_synthetic(form: str, count: int, noise: float = 0.0, seed: int = 0) -> Points:
    """7 points as of a ladder, or more as of a grid of sizes and tokens a parameter."""
    if count == 7:
        params = np.geomspace(1e7, 3e9, 7)
        ratio = np.array([20, 100, 8, 60, 15, 150, 30.0])
    else:
        params = np.repeat(np.geomspace(1e7, 3e9, 10), count // 10)
        ratio = np.tile(np.geomspace(4, 300, count // 10), 10)
    tokens = params * ratio
    flops = 6 * params * tokens
    errors = np.random.default_rng(seed).standard_normal(count)
    loss = true_loss(form, params, tokens, flops) * np.exp(noise * errors)
    names = tuple(f"run-{number}" for number in range(count))
    return Points(names, params, tokens, flops, loss, Conventions("nats", "total", "6ND"))


@pytest.fixture(scope="session")
def truth() -> dict[str, dict[str, float]]:
    """Form -> coefficients by symbol."""
    return TRUTH


@pytest.fixture(scope="session")
def synthetic() -> Callable[..., Points]:
    """``synthetic(form, count, noise=0.0, seed=0)``: points of a law."""
    return make_synthetic


@pytest.fixture(scope="session")
def law_value() -> Callable[..., float]:
    """``law_value(form, params, tokens, flops)``: the true loss."""
    return true_loss
