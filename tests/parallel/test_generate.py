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


#: Before any training, and after three steps: three continuations and three scores each time.
ASKED = {"steps": 5, "answers_before": [0, 3]}


@pytest.fixture(scope="module")
def answered(spread: Spread) -> Curves:
    (found,) = spread(1, [ASKED])
    return found


def check_answers(got: Curves, alone: Curves) -> None:
    """The weights are the same before training; after it they are to its accuracy."""
    assert len(got) == len(alone) == 5 + 2 * 6
    for begin, limit in ((0, 1e-5), (9, 1e-3)):
        assert [len(text) for text in alone[begin : begin + 3]] == [6, 6, 6]
        assert got[begin : begin + 3] == alone[begin : begin + 3]
        for mine, theirs in zip(
            got[begin + 3 : begin + 6], alone[begin + 3 : begin + 6], strict=True
        ):
            assert mine == pytest.approx(theirs, abs=limit)
    for mine, theirs in zip(got[6:9] + got[15:], alone[6:9] + alone[15:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_two_ranks_answer_as_one(spread: Spread, answered: Curves) -> None:
    runs: list[dict[str, Any]] = [
        {"parallel": {"tensor": 2}},
        {"parallel": {"sequence": 2}},
        {"parallel": {"zero": 3}},
        {"parallel": {"zero": 3}, "by_layer": True},
    ]
    for found in spread(2, [{**ASKED, **run} for run in runs]):
        check_answers(found, answered)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_ranks_answer_as_one_in_every_form(spread: Spread, position: str, precision: str) -> None:
    form = {**ASKED, "position": position, "precision": precision, "answers_before": [0]}
    (alone,) = spread(1, [form])
    runs: list[dict[str, Any]] = [
        {"parallel": {"tensor": 2}},
        {"parallel": {"zero": 3}},
        {"parallel": {"zero": 3}, "by_layer": True},
    ]
    for found in spread(2, [{**form, **run} for run in runs]):
        assert found[:3] == alone[:3]
