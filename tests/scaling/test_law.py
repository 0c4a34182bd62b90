"""A law as a whole: what it refuses, what it leaves open, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from bc2.errors import DataError
from bc2.scaling.compare import choose_form
from bc2.scaling.law import Law, settings_of
from bc2.scaling.points import Points

Synthetic = Callable[..., Points]


def saved(law: Law, folder: Path) -> dict[str, Any]:
    """``law.json`` as a strict reader has it."""
    law.save(folder)

    def refuse(name: str) -> NoReturn:
        pytest.fail(f"{name} is no JSON")

    found: dict[str, Any] = json.loads((folder / "law.json").read_text(), parse_constant=refuse)
    return found


@pytest.mark.parametrize("form", ["power", "kaplan-n", "chinchilla"])
def test_a_loss_that_rises_with_compute_has_no_law(form: str, synthetic: Synthetic) -> None:
    points = synthetic("kaplan-n", 7)
    rising = replace(points, loss=2 + 0.1 * np.argsort(np.argsort(points.flops)))
    with pytest.raises(DataError, match="does not fall with"):
        Law.of(settings_of(rising, form))


def test_what_is_at_a_bound_is_open(synthetic: Synthetic, tmp_path: Path) -> None:
    """Losses that depend on D alone leave A and alpha without a value, and say so."""
    points = synthetic("kaplan-d", 7)
    noise = np.exp(0.003 * np.random.default_rng(3).standard_normal(7))
    rising = replace(points, loss=points.loss * noise * (points.params / 1e8) ** 0.01)
    law = Law.of(settings_of(rising, "chinchilla"))
    assert "alpha" in law.at_bound
    found = saved(law, tmp_path)
    for symbol in ("alpha", "A"):
        assert (found[symbol]["low"], found[symbol]["high"]) == (0, None)


@pytest.mark.parametrize("count", [7, 50])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_law_is_strict_json_with_each_coefficient_at_the_top(
    count: int, noise: float, synthetic: Synthetic, tmp_path: Path
) -> None:
    points = synthetic("chinchilla", count, noise=noise)
    form = choose_form(None, points)
    found = saved(Law.of(settings_of(points, form.name, replicates=50)), tmp_path)
    assert set(form.symbols) <= found.keys()
    for symbol in form.symbols:
        assert set(found[symbol]) == {"value", "low", "high"}
    assert found["degrees_of_freedom"] == count - len(form.symbols)
    assert 1 <= found["starts_at_best"] <= found["starts"]
