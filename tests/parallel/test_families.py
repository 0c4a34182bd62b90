"""Layouts train a model of another family's shape as one process does, and it says the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Curves = list[list[float]]
Spread = Callable[..., list[Curves]]
Run = dict[str, Any]

#: Grouped queries, and heads that are wider than the residual stream has room for.
GROUPED = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 6}
BIASED = {"num_kv_heads": 2, "qkv_bias": True}
NORMED = {"num_kv_heads": 2, "head_dim": 10, "qk_norm": True}
TIED = {"num_kv_heads": 2, "tied": True, "norm_head": False}
TIED_NORMED = {"tied": True}
WINDOWED = {"num_kv_heads": 2, "sliding_window": 5}
EVERY = {
    "grouped": GROUPED, "biased": BIASED, "normed": NORMED, "tied": TIED,
    "tied NormHead": TIED_NORMED, "windowed": WINDOWED,
}  # fmt: skip


def asked(model: dict[str, Any], **more: Any) -> Run:
    """Some steps, and what the model says before the last."""
    return {"model": model, "steps": 4, "answers_before": [3], **more}


@pytest.fixture(scope="module")
def alone(spread: Spread) -> dict[str, Curves]:
    found = spread(1, [asked(model) for model in EVERY.values()])
    return dict(zip(EVERY, found, strict=True))


def check(got: Curves, alone: Curves) -> None:
    """Losses and norms, and between them three texts and their scores."""
    assert len(got) == len(alone) == 4 + 6
    assert got[3:6] == alone[3:6]
    for mine, theirs in zip(got[6:9], alone[6:9], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)
    for mine, theirs in zip(got[:3] + got[9:], alone[:3] + alone[9:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def layouts(*each: dict[str, int]) -> list[tuple[str, Run]]:
    return [(name, asked(model, parallel=one)) for one in each for name, model in EVERY.items()]


def test_two_ranks(spread: Spread, alone: dict[str, Curves]) -> None:
    runs = layouts({"tensor": 2}, {"sequence": 2}, {"zero": 3})
    for (name, _), found in zip(runs, spread(2, [run for _, run in runs]), strict=True):
        check(found, alone[name])


@pytest.mark.slow
def test_four_ranks(spread: Spread, alone: dict[str, Curves]) -> None:
    runs = layouts(
        {"tensor": 4}, {"sequence": 4}, {"tensor": 2, "sequence": 2},
        {"zero": 3, "tensor": 2, "sequence": 2}, {"zero": 1, "tensor": 2},
        {"zero": 2, "sequence": 2},
    )  # fmt: skip
    for (name, _), found in zip(runs, spread(4, [run for _, run in runs]), strict=True):
        check(found, alone[name])
