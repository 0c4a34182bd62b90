"""Two engines in one process train as each would alone, to the bit, beside a frozen model.

The losses of both are known before either is updated; a step that is bad for one of them leaves
both as they were. `two_models_driver.py` checks what is the same within one run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]
Run = dict[str, Any]

DRIVER = Path(__file__).with_name("two_models_driver.py")
STEPS = 3  # without the bad one


def check(spread: Spread, world: int, *runs: Run) -> None:
    """Compare both models in one run with each alone."""
    settings: list[Run] = []
    for run in runs:
        for models in (["actor"], ["critic"], ["actor", "critic"]):
            settings.append({**run, "models": models, "number": len(settings)})
    found = spread(world, settings, driver=DRIVER)
    for number, run in enumerate(runs):
        actor, critic, both = found[3 * number : 3 * number + 3]
        assert both[: 2 * STEPS : 2] == actor[:STEPS], run
        assert both[1 : 2 * STEPS : 2] == critic[:STEPS], run
        assert both[2 * STEPS :] == actor[STEPS:], run
        assert len(actor) > len(critic) == STEPS or not run.get("says")
        # Each step changes each model.
        assert len({digest for _, _, digest in both[: 2 * STEPS]}) == 2 * STEPS


PARTITIONED: Run = {"parallel": {"zero": 3}, "all_partitioned": True}


def test_two_ranks_share_the_states_of_both(spread: Spread) -> None:
    check(
        spread,
        2,
        {"parallel": {"zero": 1}, "precision": "bf16"},
        {"parallel": {"zero": 2}},
        {**PARTITIONED, "says": True},
    )


@pytest.mark.parametrize(
    "zero",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)],
)
def test_one_rank_offloads_states(spread: Spread, zero: int) -> None:
    """What DeepSpeed keeps in host memory of the bad step must not reach the next one."""
    parallel = {"zero": zero, "offload_optimizer": True}
    check(spread, 1, {"parallel": parallel, "all_partitioned": True})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"zero": 1},
        {"zero": 2},
        {"zero": 3},
        {"zero": 1, "tensor": 2},
        {"zero": 2, "sequence": 2},
        {"zero": 3, "tensor": 2},
        {"zero": 1, "offload_optimizer": True},
        {"zero": 3, "offload_optimizer": True},
    ],
)
def test_two_ranks_under_other_layouts(
    spread: Spread, parallel: dict[str, Any], precision: str
) -> None:
    one = {"parallel": parallel, "precision": precision, "says": True}
    check(spread, 2, {**one, "all_partitioned": True, "checkpointing": 1}, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel", [{"zero": 3, "zero_group": 2}, {"zero": 3, "tensor": 2, "sequence": 2}]
)
def test_four_ranks(spread: Spread, parallel: dict[str, Any]) -> None:
    check(spread, 4, {**PARTITIONED, "parallel": parallel, "precision": "bf16"})
