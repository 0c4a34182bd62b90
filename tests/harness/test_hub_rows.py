"""Rows that lm-eval reads itself are known by a digest."""

from __future__ import annotations

from typing import Any

from bc2.harness.hub_rows import rows_digest
from bc2.harness.load import load_suite
from bc2.harness.suites import SUITES


def row(number: int) -> dict[str, Any]:
    options = {letter: f"{letter}{number}" for letter in "ABCDE"}
    return {"question": f"问 {number}?", "options": options, "answer_idx": "ABCDE"[number % 5]}


def digest(shots: int, **changed: dict[str, Any]) -> str:
    rows = {"dev": [row(n) for n in range(5)], "test": [row(n) for n in range(5, 8)]}
    for split, values in changed.items():
        rows[split][1] |= values
    return rows_digest(load_suite(SUITES["medqa"], {("bc2/medqa", None): rows}, shots=shots))


def test_the_same_rows_have_the_same_digest() -> None:
    assert digest(2) == digest(2)
    assert len(digest(2)) == 64


def test_a_changed_row_has_another() -> None:
    assert digest(2) != digest(2, test={"answer_idx": "A"})
    assert digest(2) != digest(2, dev={"question": "?"})


def test_rows_that_are_not_shown_do_not_count() -> None:
    assert digest(0) == digest(0, dev={"question": "?"})
    assert digest(0) != digest(0, test={"question": "?"})
