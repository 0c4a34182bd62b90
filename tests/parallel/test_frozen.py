"""A frozen model says under every layout what plain torch on one rank says, and holds no more.

Where a rank computes everything itself, the numbers are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]
Run = dict[str, Any]

DRIVER = Path(__file__).with_name("frozen_driver.py")
BF16: Run = {"precision": "bf16"}
PARTITIONED: Run = {"parallel": {"zero": 3}, "all_partitioned": True}


def check(spread: Spread, world: int, *runs: Run) -> None:
    for run, found in zip(runs, spread(world, list(runs), driver=DRIVER), strict=True):
        lines = 2 * world + 1
        assert len(found) == 2 * lines
        for one in (found[:lines], found[lines:]):
            for rank in range(world):
                check_words(run, *one[2 * rank : 2 * rank + 2])
            check_bytes(run, world, *one[-1])


def check_words(run: Run, said: list[float], right: list[float]) -> None:
    assert len(said) > 100
    parallel = run.get("parallel", {})
    if parallel.get("tensor", 1) == parallel.get("sequence", 1) == 1:
        assert said == right, run
    elif "precision" in run:
        # Sums of parts are rounded once more, to 8 bits, in each layer.
        assert said == pytest.approx(right, rel=2**-5, abs=2**-5), run
    else:
        assert said == pytest.approx(right, rel=1e-5, abs=1e-6), run


def check_bytes(run: Run, world: int, held: float, parameters: float) -> None:
    """All ranks hold one copy of what is partitioned, else one for each replica."""
    size = 2 if "precision" in run else 4
    tensor = run.get("parallel", {}).get("tensor", 1)
    copies = 1 if "all_partitioned" in run else world // tensor
    # The critic has 24 tensors, whose last pieces are padded; 7 norms, which each tensor rank has.
    more = 24 * world + (7 * 32 * world if tensor > 1 else 0)
    assert 0 <= held / size - copies * parameters <= more, run


def test_two_ranks(spread: Spread) -> None:
    check(spread, 2, {"parallel": {"zero": 1}, **BF16}, {**PARTITIONED, **BF16}, PARTITIONED)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, BF16])
def test_two_ranks_under_other_layouts(spread: Spread, more: Run) -> None:
    layouts: list[Run] = [
        {},
        {"tensor": 2},
        {"sequence": 2},
        {"zero": 3, "tensor": 2},
        {"zero": 3, "sequence": 2},
        {"zero": 3, "offload_optimizer": True},
    ]
    runs = [{"parallel": parallel, **more} for parallel in layouts]
    partitioned = [{**run, "all_partitioned": True} for run in runs if "zero" in run["parallel"]]
    check(spread, 2, *runs[:3], *partitioned)


@pytest.mark.slow
def test_one_and_four_ranks(spread: Spread) -> None:
    offloading = {"parallel": {"zero": 3, "offload_optimizer": True}, "all_partitioned": True}
    check(spread, 1, {}, BF16, {**PARTITIONED, **BF16}, {**offloading, **BF16})
    check(spread, 4, {**PARTITIONED, "parallel": {"zero": 3, "tensor": 2}})


@pytest.mark.slow
def test_groups_that_hold_all_weights_between_them(spread: Spread) -> None:
    """DeepSpeed made their copies of what was in memory before the weights were read."""
    (found,) = spread(4, [{**PARTITIONED, "parallel": {"zero": 3, "zero_group": 2}}], driver=DRIVER)
    for one in (found[:9], found[9:]):
        for rank in range(4):
            check_words({}, *one[2 * rank : 2 * rank + 2])
