"""An algorithm of pairs, with fields and a divisor of its own, is the same under every layout.

The reference is a float64 program without batches, ranks or `sample_sums`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]

DRIVER = Path(__file__).with_name("pairs_driver.py")
#: Pairs in a micro-batch, and whether a row holds two samples, which ranks then cut in the middle.
SHAPES: list[dict[str, Any]] = [
    {"pairs": 1},
    {"pairs": 2},
    {"pairs": 1, "packed": True},
    {"pairs": 2, "packed": True},
]
ROWS_OF = {False: 8, True: 4}


def numbered(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**run, "number": number} for number, run in enumerate(runs)]


def check(run: dict[str, Any], found: Curves) -> None:
    sums, expected, errors, seen = found
    assert sums == pytest.approx(expected, rel=1e-6)
    assert max(errors) < 1e-5, run
    tokens, count, pairs, computed = seen
    assert (count, pairs) == (8, 4)
    assert 0 < tokens < computed
    assert computed == 16 * ROWS_OF[run.get("packed", False)]


def check_all(spread: Spread, ranks: int, runs: list[dict[str, Any]]) -> None:
    runs = numbered(runs)
    for run, found in zip(runs, spread(ranks, runs, driver=DRIVER), strict=True):
        check(run, found)


def test_two_ranks(spread: Spread) -> None:
    split = {"pairs": 2, "packed": True}
    layouts = [{"sequence": 2}, {"sequence": 2, "zero": 2}, {"tensor": 2}, {"zero": 2}, {}]
    runs = [{"parallel": parallel, **split} for parallel in layouts]
    runs.append({"parallel": {"sequence": 2}, "pairs": 1})
    check_all(spread, 2, runs)


def test_one_rank_whatever_the_micro_batch(spread: Spread) -> None:
    check_all(spread, 1, SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_layout(spread: Spread, zero: int) -> None:
    two = [{"tensor": 2}, {"sequence": 2}, {}]
    four = [{"tensor": 2, "sequence": 2}, {"sequence": 4}, {"sequence": 2}, {"tensor": 2}]
    for ranks, layouts in ((2, two), (4, four)):
        parallels = [{"zero": zero, **layout} for layout in layouts]
        check_all(spread, ranks, [{"parallel": p, **shape} for p in parallels for shape in SHAPES])
