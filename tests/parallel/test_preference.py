"""Packed pairs are the same under every layout: against float64, answer by answer."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]

DRIVER = Path(__file__).with_name("preference_driver.py")
ALIGN = Path(__file__).parents[1] / "align"
MODELS: tuple[dict[str, Any], ...] = ({"head": "scalar"}, {})


@pytest.fixture(autouse=True)
def made_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [str(ALIGN / room / "made") for room in ("sft", "pairs")]
    for name in ("PYTHONPATH", "WARMED_PATH"):
        path = os.pathsep.join(filter(None, [*made, os.environ.get(name)]))
        monkeypatch.setenv(name, path)


def check_all(spread: Spread, ranks: int, runs: list[dict[str, Any]]) -> None:
    runs = [{**run, "number": number} for number, run in enumerate(runs)]
    for run, found in zip(runs, spread(ranks, runs, driver=DRIVER), strict=True):
        (total,), (expected,), errors, (pairs, apart, changed) = found
        assert total == pytest.approx(expected, rel=1e-5), run
        assert max(errors) < 1e-5, run
        assert pairs == 9
        assert apart < 2e-5, run
        assert changed == 0, run


def test_one_rank_whatever_the_micro_batch(spread: Spread) -> None:
    runs = [{"micro": micro, "model": one} for micro, one in itertools.product((1, 4), MODELS)]
    runs.append({"micro": 2, "model": MODELS[0], "checkpointing": 2, "position": "alibi"})
    check_all(spread, 1, runs)


def test_two_ranks(spread: Spread) -> None:
    layouts = [{"sequence": 2}, {"sequence": 2, "zero": 2}, {"tensor": 2}, {"zero": 3}, {}]
    runs = [
        {"parallel": layout, "micro": 1, "model": one}
        for layout, one in itertools.product(layouts, MODELS)
    ]
    check_all(spread, 2, runs)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_layout(spread: Spread, zero: int) -> None:
    two = [{"tensor": 2}, {"sequence": 2}, {}]
    four = [{"tensor": 2, "sequence": 2}, {"sequence": 4}, {"sequence": 2}, {"tensor": 2}]
    for ranks, layouts in ((2, two), (4, four)):
        runs = [
            {"parallel": {"zero": zero, **layout}, "micro": 1, "model": one, "position": position}
            for layout, one, position in itertools.product(layouts, MODELS, ("rope", "alibi"))
        ]
        check_all(spread, ranks, runs)
