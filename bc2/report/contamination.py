"""Documents that share text with benchmarks: a table of `contamination.jsonl` of a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from bc2.console import table
from bc2.data.prep.funnel import Funnel
from bc2.data.prep.stages.decontamination.matches import BenchmarkMatch
from bc2.report.visible_text import visible

#: Matches that a terminal's table has at most.
MOST_ROWS = 1000
#: Characters of a table's texts, and those of them before what is shared.
MOST_CHARACTERS, BEFORE = 160, 30
#: The stage that finds them.
DECONTAMINATE = "decontaminate"


def counts(funnel: Funnel) -> dict[str, int]:
    """Matches in all, and those that the recipe's limit left out: ``pairs``, ``not_listed``."""
    facts = next((stage.facts for stage in funnel.stages if stage.name == DECONTAMINATE), {})
    return {name: int(facts.get(name, 0)) for name in ("pairs", "not_listed")}


def matches_table(matches: Iterable[BenchmarkMatch], funnel: Funnel, most: int = MOST_ROWS) -> Any:
    """A table of the first matches, and how many more there are."""
    rows = [_row(match) for match in islice(matches, most)]
    found = counts(funnel)
    if not rows and not found["pairs"]:
        return "No document shares text with a benchmark."
    more = found["pairs"] - len(rows)
    title = f"Matches with benchmarks: {found['pairs']:,}" + (
        f", {more:,} not here" if more else ""
    )
    heads = ("document", "benchmark", "what", "done", "its text", "the benchmark's")
    return table(heads, rows, title)


def _row(match: BenchmarkMatch) -> tuple[str, ...]:
    before, shared, after = match.pieces()
    near = f"{before[-BEFORE:]}{shared}{after}"
    found_in = f"{match.benchmark} {match.item}"
    words = (match.document, found_in, match.found_by, match.done, near, match.benchmark_text)
    return tuple(visible(" ".join(one.split()), MOST_CHARACTERS) for one in words)
