"""Packed fine-tuning is the same under every layout: against float64, sample by sample."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]

DRIVER = Path(__file__).with_name("sft_driver.py")
MADE = Path(__file__).parents[1] / "align" / "sft" / "made"
COUNTS = ("tokens", "weighted", "samples")


@pytest.fixture(autouse=True)
def made_samples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "WARMED_PATH"):
        monkeypatch.setenv(name, os.pathsep.join(filter(None, [str(MADE), os.environ.get(name)])))


def check_all(spread: Spread, ranks: int, runs: list[dict[str, Any]]) -> None:
    runs = [{**run, "number": number} for number, run in enumerate(runs)]
    for run, found in zip(runs, spread(ranks, runs, driver=DRIVER), strict=True):
        sums, expected, errors, (sequences, left) = found
        assert sums[0] == pytest.approx(expected[0], rel=1e-6), run
        assert (sums[1] == pytest.approx(sums[0])) == (run["counts"] == "tokens")
        assert max(errors) < 1e-5, run
        assert 0 < sequences == left < 8


def test_one_rank_whatever_the_micro_batch(spread: Spread) -> None:
    runs = [{"micro": micro, "counts": c} for micro, c in itertools.product((1, 4), COUNTS)]
    runs.append({"micro": 2, "counts": "tokens", "checkpointing": 2, "position": "alibi"})
    check_all(spread, 1, runs)


def test_two_ranks(spread: Spread) -> None:
    layouts = [{"sequence": 2}, {"sequence": 2, "zero": 2}, {"tensor": 2}, {"zero": 3}, {}]
    runs = [
        {"parallel": layout, "micro": 1 + number % 2, "counts": COUNTS[number % 3]}
        for number, layout in enumerate(layouts)
    ]
    check_all(spread, 2, runs)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_layout(spread: Spread, zero: int) -> None:
    two = [{"tensor": 2}, {"sequence": 2}, {}]
    four = [{"tensor": 2, "sequence": 2}, {"sequence": 4}, {"sequence": 2}, {"tensor": 2}]
    for ranks, layouts in ((2, two), (4, four)):
        runs = [
            {"parallel": {"zero": zero, **layout}, "micro": micro, "counts": counts,
             "position": position}
            for layout in layouts
            for micro, counts, position in itertools.product((1, 2), COUNTS, ("rope", "alibi"))
        ]  # fmt: skip
        check_all(spread, ranks, runs)
