"""Under every layout the model says what one process says, and trains on as if it had not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]

#: Steps before and after; then four texts stand among losses and norms.
RUN = {"steps": 6, "says_before": 3}


@pytest.fixture(scope="module")
def alone(spread: Spread) -> Curves:
    (found,) = spread(1, [RUN])
    return found


def check(got: Curves, alone: Curves) -> None:
    said = alone[3:7]
    assert [len(text) for text in said[:2]] == [6, 6]
    assert len(said[2]) != len(said[3])
    assert got[3:7] == said
    for mine, theirs in zip(got[:3] + got[7:], alone[:3] + alone[7:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_two_ranks(spread: Spread, alone: Curves) -> None:
    layouts: list[dict[str, Any]] = [
        {"tensor": 2},
        {"sequence": 2},
        {"zero": 3},
        {"zero": 2, "sequence": 2},
    ]
    for found in spread(2, [{**RUN, "parallel": layout} for layout in layouts]):
        check(found, alone)


@pytest.mark.slow
def test_four_ranks_with_everything(spread: Spread, alone: Curves) -> None:
    (found,) = spread(4, [{**RUN, "parallel": {"zero": 3, "tensor": 2, "sequence": 2}}])
    check(found, alone)
