"""Typed lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.train.duration import Duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("350 steps", 350),
        ("1 step", 1),
        ("2.6T tokens", 2_600_000_000_000 // 1000),
        ("1_500 tokens", 2),
        ("2 epochs", 20),
        ("0.25 epochs", 3),
        ("1.5K steps", 1500),
    ],
)
def test_forms(text: str, steps: int) -> None:
    assert Duration.parse(text).steps(batch_tokens=1000, epoch_tokens=10_000) == steps


@pytest.mark.parametrize(
    "text",
    ["", "350", "steps", "0 steps", "1.5 steps", "-1 steps", "1e3 steps", "5 hours", "1Q tokens"],
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"length|fraction|zero|more"):
        Duration.parse(text)


@pytest.mark.parametrize("text", ["0 steps", "0 tokens", "0.0 epochs", "0K tokens"])
def test_zero_is_a_length_where_it_is_asked_for(text: str) -> None:
    found = Duration.parse(text, may_be_zero=True)
    assert found.steps(batch_tokens=1000, epoch_tokens=10_000) == 0
    with pytest.raises(ValueError, match="more than zero"):
        Duration.parse(text)


@given(st.integers(1, 10**15), st.integers(1, 10**7))
def test_tokens_are_covered_and_no_step_more(tokens: int, batch: int) -> None:
    steps = Duration.parse(f"{tokens} tokens").steps(batch_tokens=batch, epoch_tokens=1)
    assert (steps - 1) * batch < tokens <= steps * batch
