"""Documents that share text with benchmarks, one by one: `contamination.jsonl` of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bc2.console import table
from bc2.errors import DataError, from_os_error
from bc2.report.funnel import Funnel
from bc2.report.visible_text import visible

#: Matches that a terminal's table has at most.
MOST_ROWS = 1000
#: Characters of a table's texts, and those of them before what is shared.
MOST_CHARACTERS, BEFORE = 160, 30
#: The stage that finds them.
DECONTAMINATE = "decontaminate"


class Match(BaseModel):
    """A document and a text of a benchmark that share words; keys of later versions are passed
    over."""

    model_config = ConfigDict(frozen=True)

    file: str
    row: int
    source: str
    lang: str | None
    benchmark: str
    item: str
    """FILE:ROW of the benchmark, or lm-eval's TASK/SPLIT:NUMBER."""
    how: str
    """"text": the document holds the whole of the item's; "ngram": words in a row of it."""
    words: int
    """Words and CJK characters of the first place they share."""
    text: str
    """The document's, around that place."""
    shared: tuple[int, int]
    """Where the place begins and ends in `text`."""
    benchmark_text: str
    done: str
    """"dropped", "cut" or "reported"."""

    @property
    def document(self) -> str:
        return f"{self.source} {self.file}:{self.row}"

    @property
    def found_by(self) -> str:
        return f"{'whole text' if self.how == 'text' else 'part'}, {self.words:,} words"

    def pieces(self) -> tuple[str, str, str]:
        """The document's text before, at and after the place that is shared."""
        start, stop = self.shared
        return self.text[:start], self.text[start:stop], self.text[stop:]


def read_matches(path: Path) -> Iterator[Match]:
    """The matches of a `contamination.jsonl`, in the order of documents.

    Raises:
        DataError: a line is no match.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                yield _match(line, f"{path}:{number}")
    except OSError as error:
        raise from_os_error(error, "reading the matches with benchmarks") from error


def _match(line: bytes, where: str) -> Match:
    try:
        return Match.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"this is no match with a benchmark: {first['msg']}",
            where=where,
            todo="make the corpus again with `bc2 data prep`",
        ) from error


def counts(funnel: Funnel) -> dict[str, int]:
    """Matches in all, and those that the recipe's limit left out: ``pairs``, ``not_listed``."""
    facts = next((step.facts for step in funnel.steps if step.name == DECONTAMINATE), {})
    return {name: int(facts.get(name, 0)) for name in ("pairs", "not_listed")}


def view(matches: Iterable[Match], funnel: Funnel, most: int = MOST_ROWS) -> Any:
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


def _row(match: Match) -> tuple[str, ...]:
    before, shared, after = match.pieces()
    near = f"{before[-BEFORE:]}{shared}{after}"
    found_in = f"{match.benchmark} {match.item}"
    words = (match.document, found_in, match.found_by, match.done, near, match.benchmark_text)
    return tuple(visible(" ".join(one.split()), MOST_CHARACTERS) for one in words)
