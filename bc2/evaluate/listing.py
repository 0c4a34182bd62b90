"""The suites that `bc2 eval` knows, for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bc2.console import table
from bc2.harness.suites import SUITES


def suites_json() -> list[dict[str, Any]]:
    """Every suite with all that is known of it."""
    return [asdict(suite) for suite in SUITES.values()]


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
    rows.append(("text", "Text of your own", "-", "bits_per_byte", "-", "--data FILE"))
    return table(("benchmark", "", "shots", "metric", "chance", "needs"), rows)
