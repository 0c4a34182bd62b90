"""The named warnings of evaluations, on made log-ratios."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bc2.align.dpo.dpo_config import DpoConfig
from bc2.align.dpo.heldout_preferences import HeldoutPreferences
from bc2.align.dpo.own_answers import OwnAnswers


def codes(precision: str, a_token: float, *, first: float = 4.0, now: float = 4.0) -> list[str]:
    """Warnings where each answer of 100 tokens has this log-ratio a token."""
    config = DpoConfig(
        init="checkpoint/small", length="1 steps", batch_tokens=64, sequence_length=64,
        micro_batch=1, device="cpu", precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    none: Any = None
    answers = OwnAnswers(none, first)
    held = HeldoutPreferences(none, none, (), config, answers, lambda: None)
    lengths = np.full((50, 2), 100.0)
    found = held._warnings(a_token * lengths, lengths, np.zeros(50), now)
    return [code for code, _ in found]


@pytest.mark.parametrize(
    ("precision", "a_token", "expected"),
    [
        ("fp32", -1e-3, []),
        ("fp32", -0.05, ["both-fall"]),
        ("bf16", -1e-2, []),
        ("bf16", -0.05, ["both-fall"]),
        ("fp32", 0.05, []),
    ],
)
def test_rounding_is_no_fall(precision: str, a_token: float, expected: list[str]) -> None:
    assert codes(precision, a_token) == expected


def test_longer_answers_at_equal_reward_are_named() -> None:
    assert codes("fp32", 0.0, first=4.0, now=6.0) == ["longer-answers"]
    assert codes("fp32", 0.0, first=4.0, now=4.5) == []
