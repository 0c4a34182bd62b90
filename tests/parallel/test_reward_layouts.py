"""A reward model that one layout saved gives the same scores under every other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Spread = Callable[..., list[list[list[float]]]]
Layout = dict[str, Any]

DRIVER = Path(__file__).with_name("reward_layouts_driver.py")
ALIGN = Path(__file__).parents[1] / "align"
LAYOUTS: list[Layout] = [
    {**ranks, "zero": zero} for ranks in ({}, {"tensor": 2}, {"sequence": 2}) for zero in range(4)
]


@pytest.fixture(autouse=True)
def made_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [str(ALIGN / room / "made") for room in ("sft", "pairs")]
    for name in ("PYTHONPATH", "WARMED_PATH"):
        path = os.pathsep.join(filter(None, [*made, os.environ.get(name)]))
        monkeypatch.setenv(name, path)


def check(spread: Spread, saves: list[Layout], loads: list[Layout]) -> None:
    runs = [{"saves": one, "loads": loads, "number": at} for at, one in enumerate(saves)]
    for run, (right, *others) in zip(runs, spread(2, runs, driver=DRIVER), strict=True):
        assert len(right) == 50
        assert np.std(right) > 0.01
        assert len(others) == len(loads)
        for layout, found in zip(loads, others, strict=True):
            assert np.abs(np.subtract(found, right)).max() < 1e-5, (run["saves"], layout)


def test_scores_after_another_layout(spread: Spread) -> None:
    check(spread, [{"zero": 3}], [{"tensor": 2}])


@pytest.mark.slow
def test_scores_after_every_other_layout(spread: Spread) -> None:
    check(spread, LAYOUTS, LAYOUTS)
