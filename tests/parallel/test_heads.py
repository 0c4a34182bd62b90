"""Every layout trains a model with a head of values as one process does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]

DRIVER = Path(__file__).with_name("heads_driver.py")
SCALAR = {"model": {"head": "scalar"}}
CLASSES = {"model": {"head": "classes", "num_classes": 3}}


def layout(**parallel: Any) -> dict[str, Any]:
    return {"parallel": parallel}


def check(got: Curves, expected: Curves, loss: float = 1e-5, norm: float = 1e-4) -> None:
    *steps, head = got
    *their_steps, their_head = expected
    assert len(steps) == len(their_steps) == 5
    for mine, theirs in zip(steps, their_steps, strict=True):
        assert mine[0] == pytest.approx(theirs[0], rel=loss)
        assert mine[1] == pytest.approx(theirs[1], rel=norm)
        assert mine[2] == pytest.approx(theirs[2], rel=norm, abs=norm)
    assert head == pytest.approx(their_head, rel=norm, abs=10 * loss)


@pytest.fixture(scope="module")
def alone(spread: Spread) -> dict[str, Curves]:
    """What one process makes of both heads."""
    runs = [SCALAR, CLASSES, {**SCALAR, "precision": "bf16"}]
    scalar, classes, rounded = spread(1, runs, driver=DRIVER)
    assert (len(scalar[-1]), len(classes[-1])) == (32, 96)
    assert scalar[-2][0] < 0.9 * scalar[0][0], "the head learns nothing"
    return {"scalar": scalar, "classes": classes, "bf16": rounded}


def test_two_ranks(spread: Spread, alone: dict[str, Curves]) -> None:
    """Tensor ranks have the whole head each, and its gradient counts once."""
    layouts = [layout(), layout(tensor=2), layout(sequence=2)]
    runs = [{**one, **head} for one in layouts for head in (SCALAR, CLASSES)]
    for run, got in zip(runs, spread(2, runs, driver=DRIVER), strict=True):
        check(got, alone[run["model"]["head"]])


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_ranks_share_states(spread: Spread, alone: dict[str, Curves], zero: int) -> None:
    runs = [{**layout(zero=zero), **SCALAR}, {**layout(zero=zero), **CLASSES}]
    runs += [{**layout(zero=zero, tensor=2), **SCALAR, "precision": "bf16"}]
    scalar, classes, rounded = spread(2, runs, driver=DRIVER)
    check(scalar, alone["scalar"])
    check(classes, alone["classes"])
    check(rounded, alone["bf16"], loss=3e-2, norm=0.3)
