"""Layouts train a model of another family's shape as one process does, and it says the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]
Run = dict[str, Any]

GROUPED = {"num_heads": 8, "num_kv_heads": 4}
#: One thing that differs from Baichuan 2 each.
EVERY: dict[str, dict[str, Any]] = {
    "grouped": GROUPED,
    "wide": {"head_dim": 12},
    "biased": {**GROUPED, "qkv_bias": True},
    "normed": {**GROUPED, "head_dim": 6, "qk_norm": True},
    "tied": {**GROUPED, "tied": True, "norm_head": False},
    "tied NormHead": {"tied": True},
    "windowed": {**GROUPED, "sliding_window": 5},
}
#: And all of it at once.
ALL = {
    **GROUPED, "head_dim": 6, "qkv_bias": True, "qk_norm": True, "tied": True, "sliding_window": 5,
    "rope_scaling": {"kind": "yarn", "factor": 2.0, "original_context": 8},
}  # fmt: skip


def asked(model: dict[str, Any], **more: Any) -> Run:
    """Some steps, and what the model says before the last."""
    return {"model": model, "steps": 4, "answers_before": [3], **more}


def check(got: Curves, alone: Curves) -> None:
    """Losses and norms, and between them three texts and their scores."""
    assert len(got) == len(alone) == 4 + 6
    assert got[3:6] == alone[3:6]
    for mine, theirs in zip(got[6:9], alone[6:9], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)
    for mine, theirs in zip(got[:3] + got[9:], alone[:3] + alone[9:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def check_all(spread: Spread, world: int, *layouts: dict[str, int], **models: Any) -> None:
    """Every model under every layout is what one process makes of it."""
    alone = spread(1, [asked(model) for model in models.values()])
    runs = [asked(model, parallel=one) for one in layouts for model in models.values()]
    for number, found in enumerate(spread(world, runs)):
        check(found, alone[number % len(alone)])


def test_two_ranks(spread: Spread) -> None:
    check_all(spread, 2, {"tensor": 2}, {"sequence": 2}, {"zero": 3}, all=ALL)


@pytest.mark.slow
def test_two_ranks_each(spread: Spread) -> None:
    layouts = [{"tensor": 2}, {"sequence": 2}, {"zero": 1}, {"zero": 2}, {"zero": 3}]
    check_all(spread, 2, *layouts, **EVERY)


@pytest.mark.slow
def test_four_ranks(spread: Spread) -> None:
    layouts = [
        {"tensor": 4}, {"sequence": 4}, {"tensor": 2, "sequence": 2},
        {"zero": 3, "tensor": 2, "sequence": 2}, {"zero": 1, "tensor": 2},
        {"zero": 2, "sequence": 2},
    ]  # fmt: skip
    check_all(spread, 4, *layouts, **EVERY, all=ALL)
