"""The suites that `bc2 eval` knows, for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bc2.console import table
from bc2.harness.suites import SUITES

_TEXT = "Text of your own"


def suites_json() -> list[dict[str, Any]]:
    """Every suite with all that is known of it."""
    return [*(asdict(suite) for suite in SUITES.values()), {"name": "text", "title": _TEXT}]


def suites_table() -> Any:
    """A table of the suites, for a terminal."""
    rows = [
        (
            suite.name,
            suite.title,
            str(suite.shots),
            suite.metric,
            "-" if suite.chance is None else f"{suite.chance:.0%}",
            "with --allow-code" if suite.runs_code else "",
        )
        for suite in SUITES.values()
    ]
    rows.append(("text", _TEXT, "-", "bits_per_byte", "-", "--data FILE"))
    return table(("benchmark", "", "shots", "metric", "chance", "needs"), rows)
