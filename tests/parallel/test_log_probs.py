"""A model's head gives log-probabilities, and their gradients, alike under every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]

DRIVER = Path(__file__).with_name("log_probs_driver.py")
STEPS = 5

#: The gradient of an entropy beside that of log-probabilities.
ENTROPY = {"entropy_weight": 0.3}


@pytest.fixture(scope="module")
def alone(spread: Spread) -> list[Curves]:
    """Trained by the fused loss, by log-probabilities, and with an entropy, on one rank."""
    return spread(1, [{"fused": True}, {}, ENTROPY], driver=DRIVER)


def check(got: Curves, expected: Curves) -> None:
    for mine, theirs in zip(got[:STEPS], expected[:STEPS], strict=True):
        assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
        assert mine[1] == pytest.approx(theirs[1], rel=1e-4)
    assert len(got) in (STEPS, len(expected))
    for said, right in zip(got[STEPS:], expected[STEPS:], strict=False):
        assert said == pytest.approx(right, rel=1e-3, abs=1e-3)


def test_a_sum_of_log_probabilities_trains_as_the_fused_loss(alone: list[Curves]) -> None:
    assert len(alone[0]) == STEPS + 5
    check(alone[1], alone[0])


def test_an_entropy_has_a_gradient(alone: list[Curves]) -> None:
    assert abs(alone[2][0][1] / alone[1][0][1] - 1) > 1e-3


def test_two_ranks_train_and_say_what_one_does(spread: Spread, alone: list[Curves]) -> None:
    runs = [{"parallel": {"tensor": 2}, **ENTROPY}, {"parallel": {"sequence": 2}}]
    cut_by_vocabulary, cut_by_tokens = spread(2, runs, driver=DRIVER)
    check(cut_by_vocabulary, alone[2])
    check(cut_by_tokens, alone[1])


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_ranks_that_share_states(spread: Spread, alone: list[Curves], zero: int) -> None:
    runs = [{"parallel": {"zero": zero}, **more} for more in ({}, ENTROPY)]
    for got, expected in zip(spread(2, runs, driver=DRIVER), alone[1:], strict=True):
        check(got, expected)


@pytest.mark.slow
def test_four_ranks_with_everything(spread: Spread, alone: list[Curves]) -> None:
    parallel = {"zero": 3, "tensor": 2, "sequence": 2}
    for got in spread(4, [{"parallel": parallel}], driver=DRIVER):
        check(got, alone[1])
