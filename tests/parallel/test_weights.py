"""Every layout trains part of a model that began with a checkpoint's weights as one process does.

`weights_driver.py` checks on every rank that the other part stays as it was, to the bit, and that
nothing but its weight is held of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]
Run = dict[str, Any]

DRIVER = Path(__file__).with_name("weights_driver.py")
UPPER, LOWER, PACKED, ADAPTERS, LORA = (
    {"trained": part} for part in ("upper", "lower", "packed", "adapters", "lora")
)
SCALAR: Run = {"head": {"head": "scalar"}, "trained": "upper"}
BF16: Run = {"precision": "bf16"}
PARTITIONED: Run = {"parallel": {"zero": 3}, "all_partitioned": True}


def layout(**parallel: Any) -> Run:
    return {"parallel": parallel}


def check(got: Curves, expected: Curves, loss: float = 1e-5, norm: float = 1e-4) -> None:
    *steps, weights = got
    *their_steps, their_weights = expected
    assert len(steps) == len(their_steps)
    for mine, theirs in zip(steps, their_steps, strict=True):
        assert mine[0] == pytest.approx(theirs[0], rel=loss)
        assert mine[1] == pytest.approx(theirs[1], rel=norm)
    assert len(weights) > 1000
    apart = np.abs(np.subtract(weights, their_weights))
    assert apart.mean() < (1e-6 if loss < 1e-4 else 2e-3)
    # A weight whose gradient is almost zero may go either way in the first steps.
    assert apart.max() < (1e-4 if loss < 1e-4 else 0.1)


def name_of(run: Run) -> str:
    part = "scalar" if "head" in run else run["trained"]
    return f"{part} again" if "resumes" in run else str(part)


def spread_all(spread: Spread, world: int, runs: list[Run]) -> list[Curves]:
    """Each saves under its number, which a later one may resume from."""
    return spread(
        world, [{**run, "saves": str(number)} for number, run in enumerate(runs)], driver=DRIVER
    )


def alone_with(spread: Spread, more: Run) -> dict[str, Curves]:
    """What one process makes of each part."""
    runs = [UPPER, LOWER, PACKED, SCALAR, ADAPTERS, LORA]
    runs += [{**UPPER, "resumes": "0"}, {**LOWER, "resumes": "1"}]
    found = spread_all(spread, 1, [{**run, **more} for run in runs])
    assert found[0][3][0] < 0.98 * found[0][0][0], "nothing is learnt"
    return dict(zip(map(name_of, runs), found, strict=True))


@pytest.fixture(scope="module")
def alone(spread: Spread) -> dict[str, Curves]:
    return alone_with(spread, {})


def test_two_ranks(spread: Spread, alone: dict[str, Curves]) -> None:
    runs = [
        {**layout(), **UPPER},
        {**layout(zero=2), **LOWER},
        {**PARTITIONED, **SCALAR, "frozen_too": True},
        {**layout(tensor=2), **LOWER},
        {**layout(sequence=2), **PACKED},
        # Whatever the layout that saved it.
        {**layout(zero=1, tensor=2), **UPPER, "resumes": "0"},
        {**PARTITIONED, **LOWER, "resumes": "3"},
        {**PARTITIONED, **ADAPTERS, "frozen_too": True},
        {**layout(tensor=2), **LORA},
        {**layout(sequence=2), **LORA},
        {**layout(zero=1, tensor=2), **LORA},
    ]
    for run, got in zip(runs, spread_all(spread, 2, runs), strict=True):
        check(got, alone[name_of(run)])


@pytest.mark.parametrize("world", [1, 2])
def test_weights_that_are_stored_in_several_types(spread: Spread, world: int) -> None:
    """fp32 masters are the stored numbers: none was rounded to the type of the run on the way."""
    layouts: list[Run] = [layout()]
    if world > 1:
        layouts += [layout(tensor=2), layout(zero=1), layout(zero=2), PARTITIONED]
    runs = [
        {**one, **UPPER, "mixed": True, "precision": precision}
        for one in layouts
        for precision in ("fp32", "bf16")
    ]
    for ((checked,),) in spread_all(spread, world, runs):
        assert checked > 1000


LAYOUTS = [
    {},
    {"tensor": 2},
    {"sequence": 2},
    {"zero": 1},
    {"zero": 2},
    {"zero": 3},
    {"zero": 1, "tensor": 2},
    {"zero": 2, "sequence": 2},
    {"zero": 3, "tensor": 2},
    {"zero": 1, "offload_optimizer": True},
    {"zero": 2, "offload_optimizer": True},
    {"zero": 3, "offload_optimizer": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_under_every_layout(spread: Spread, precision: str) -> None:
    """Each part, and a resume of what the layout before has saved."""
    more = {"precision": precision}
    alone = alone_with(spread, more)
    runs: list[Run] = []
    upper: int | None = None
    for parallel in LAYOUTS:
        one = {"parallel": parallel, **more}
        before = {"resumes": str(upper)} if upper is not None else {}
        upper = len(runs)
        parts = [UPPER, LOWER, PACKED, SCALAR, LORA]
        parts += [] if "tensor" in parallel else [ADAPTERS]
        runs += [{**one, **part} for part in parts]
        runs += [{**one, **UPPER, **before, "all_partitioned": True, "checkpointing": 1}]
    # Those of a partitioned model that was not resumed.
    parts = [UPPER, LOWER, PACKED, SCALAR, ADAPTERS, LORA]
    runs += [{**PARTITIONED, **more, **part} for part in parts]
    limits = {"loss": 1e-5, "norm": 1e-4} if precision == "fp32" else {"loss": 1e-2, "norm": 0.1}
    for run, got in zip(runs, spread_all(spread, 2, runs), strict=True):
        check(got, alone[name_of(run)], **limits)


@pytest.mark.slow
def test_four_ranks(spread: Spread, alone: dict[str, Curves]) -> None:
    layouts = [{"zero": 3, "tensor": 2}, {"zero": 3, "zero_group": 2}, {"tensor": 2}, {"zero": 1}]
    runs = [{**layout(**one), **part} for one in layouts for part in (UPPER, LOWER, LORA)]
    runs = [{**run, "all_partitioned": True} for run in runs]
    for run, got in zip(runs, spread_all(spread, 4, runs), strict=True):
        check(got, alone[name_of(run)])
