"""A description of a corpus or of token shards as tables, on a terminal or in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from bc2.console import table
from bc2.data.prep.funnel import Histogram
from bc2.data.splits import SPLITS
from bc2.report import funnel_view, timings
from bc2.report.description import Description, SourceDescription, Tally
from bc2.report.funnel_rows import PAPER_KEPT, language, share, stage_rows
from bc2.report.number_format import NOTHING
from bc2.report.timings import Timing
from bc2.report.visible_text import size, visible


class Sheet(NamedTuple):
    """One table: whole numbers are cells of their own kind, everything else is words."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[object]]


def view(found: Description) -> Any:
    """Everything as one renderable of rich; the funnel below, where there is one."""
    from rich.console import Group

    parts: list[Any] = []
    for sheet in sheets(found):
        parts += [table(sheet.columns, sheet.lines, sheet.title), ""]
    parts += [licence_note(found)]
    if found.funnel is not None:
        parts += ["", funnel_view.view(found.funnel)]
    if found.timings:
        parts += ["", timing_table(found.timings)]
    return Group(*parts)


def timing_table(found: Sequence[Timing]) -> Any:
    """A line a step of making the corpus: what came in, seconds, and how fast that is."""
    return table(timings.COLUMNS, timings.lines(found), timings.TITLE)


def markdown(found: Description, title: str) -> str:
    """The same as a Markdown document, for a data card."""
    parts = [f"# {_cell(title)}", licence_note(found)]
    for sheet in [*sheets(found), *_funnel_sheets(found), *_timing_sheets(found)]:
        parts += [f"## {sheet.title}", _markdown_table(sheet)]
    return "\n\n".join(parts) + "\n"


def licence_note(found: Description) -> str:
    """Which sources have no recorded licence, if any."""
    missing = [visible(name) for name in found.unlicensed]
    if not missing:
        return "A licence is recorded for every source."
    return f"No licence is recorded for {', '.join(missing)}."


def sheets(found: Description) -> list[Sheet]:
    """Totals, sources, their provenance, languages and lengths."""
    return [
        _totals(found),
        _by_source(found),
        *_weights(found),
        _provenance(found),
        _languages(found),
        _lengths(found.lengths, found.length_unit),
    ]


def _totals(found: Description) -> Sheet:
    lines = [[split, *_amounts(found, found.total(split))] for split in SPLITS]
    lines.append(["in all", *_amounts(found, found.total())])
    return Sheet("In all", ["split", *_heads(found)], lines)


def _by_source(found: Description) -> Sheet:
    sums: dict[tuple[str, str], Tally] = {}
    for one in found.sources:
        for split, tally in one.splits.items():
            mine = sums.setdefault((one.source, split), Tally())
            mine.add(tally.documents, tally.bytes, tally.tokens)
    lines = [[visible(name), split, *_amounts(found, t)] for (name, split), t in sums.items()]
    return Sheet("By source", ["source", "split", *_heads(found)], lines)


def _weights(found: Description) -> list[Sheet]:
    """What training draws from each source or stratum, where the corpus says it."""
    whole = sum(one.weight or 0 for one in found.sources)
    if not whole:
        return []
    lines = []
    for one in found.sources:
        held = Tally()
        for tally in one.splits.values():
            held.add(tally.documents, tally.bytes, tally.tokens)
        drawn = None if one.weight is None else share(one.weight, whole)
        lines.append([visible(one.name), *_amounts(found, held), funnel_view.exact(drawn)])
    return [Sheet("Drawn in training", ["stratum", *_heads(found), "drawn"], lines)]


def _provenance(found: Description) -> Sheet:
    first = {one.source: one for one in reversed(found.sources)}
    lines = [
        [visible(one.source), visible(language(one.lang)),
         visible(one.licence or "not recorded"), visible(_origin(one))]
        for one in reversed(first.values())
    ]  # fmt: skip
    return Sheet("Where it is from", ["source", "language", "licence", "origin"], lines)


def _languages(found: Description) -> Sheet:
    whole = found.total().bytes
    lines = [
        [visible(lang), *_amounts(found, tally), funnel_view.exact(share(tally.bytes, whole))]
        for lang, tally in found.languages.items()
    ]
    return Sheet("By language", ["language", *_heads(found), "of bytes"], lines)


def _lengths(lengths: dict[str, Histogram], unit: str) -> Sheet:
    """A line a bin, a column a language."""
    bins = {
        lang: {(b.low, b.high): b.documents for b in one.bins()} for lang, one in lengths.items()
    }
    lines: list[list[object]] = []
    for low, high in sorted({ends for found in bins.values() for ends in found}):
        name = f"{low:,.0f} or more" if math.isinf(high) else f"{low:,.0f} to {high - 1:,.0f}"
        lines.append([name, *(found.get((low, high), 0) for found in bins.values())])
    title = f"Documents by length in {unit}"
    return Sheet(title, ["length", *map(visible, lengths)], lines)


def _heads(found: Description) -> list[str]:
    tokens = ["tokens", "bytes/token"] if found.kind == "tokens" else []
    return ["documents", "bytes", *tokens]


def _amounts(found: Description, one: Tally) -> list[object]:
    per = one.bytes_per_token
    tokens = [one.tokens or 0, NOTHING if per is None else f"{per:>11.3f}"]
    return [one.documents, f"{size(one.bytes):>10}", *(tokens if found.kind == "tokens" else [])]


def _origin(source: SourceDescription) -> str:
    if not source.origin:
        return NOTHING
    return ", ".join(f"{key} {value}" for key, value in source.origin.items() if value is not None)


def _funnel_sheets(found: Description) -> list[Sheet]:
    funnel = found.funnel
    if funnel is None:
        return []
    lines: list[list[object]] = [
        [row.stage, row.documents_removed, _percent(row.documents_removed_share),
         size(row.bytes_removed), _percent(row.bytes_removed_share),
         _percent(row.bytes_left_share), _percent(row.paper_removed_share),
         _percent(row.paper_left_share)]
        for row in stage_rows(funnel)
    ]  # fmt: skip
    read, kept = funnel.read, funnel.kept
    gone, lost = read.documents - kept.documents, read.bytes - kept.bytes
    lines.append(
        ["in all", gone, _percent(share(gone, read.documents)), size(lost),
         _percent(share(lost, read.bytes)), _percent(share(kept.bytes, read.bytes)),
         _percent(1 - PAPER_KEPT), _percent(PAPER_KEPT)]
    )  # fmt: skip
    columns = ["stage", "documents removed", "of raw", "bytes removed", "of raw", "bytes left",
               "paper: removed", "paper: left"]  # fmt: skip
    return [Sheet("Funnel", columns, lines)]


def _timing_sheets(found: Description) -> list[Sheet]:
    lines = [[str(cell).strip() for cell in line] for line in timings.lines(found.timings)]
    return [Sheet(timings.TITLE, timings.COLUMNS, lines)] if lines else []


def _percent(part: float | None) -> str:
    return funnel_view.exact(part).strip()


def _markdown_table(sheet: Sheet) -> str:
    if not sheet.lines:
        return "None."
    first = sheet.lines[0]
    marks = ["---:" if isinstance(cell, int) else "---" for cell in first]
    lines = [list(sheet.columns), marks, *sheet.lines]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    r"""One line of Markdown in which nothing is markup: what might be is escaped."""
    text = f"{value:,}" if isinstance(value, int) else " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in "|<>`*_[]\\#" else letter for letter in text)
