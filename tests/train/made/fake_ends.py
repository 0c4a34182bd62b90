"""What the tests of fake runs compare: places in a run, and where one ends."""

from __future__ import annotations

from typing import Any

from fake_run import ROWS, FakeRun, Saved

TWO = ("model", "critic")


def straight(**settings: Any) -> Saved:
    """The end of a run that nothing happens to."""
    return FakeRun(**settings).attempt()


def positions(run: FakeRun) -> list[tuple[int, int]]:
    return [(saved.step, saved.samples) for saved in run.saves]


def span(step: int) -> range:
    """The samples of a step, counted from 1, if nothing is left out."""
    return range((step - 1) * ROWS, step * ROWS)


def bad_step(step: int, what: str, role: str = "model") -> dict[tuple[str, int], str]:
    """In the second micro-batch."""
    return {(role, span(step)[1]): what}
