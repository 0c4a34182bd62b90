"""Scores as tables: on a terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bc2.console import table
from bc2.evaluate.summary import Summary

_COLUMNS = (
    "benchmark", "shots", "score", "±", "chance", "samples", "cut", "at limit",
    "not extracted", "note",
)  # fmt: skip

#: Columns that are read from the right: all but the first and the last.
_NUMBERS = range(1, len(_COLUMNS) - 1)

_TEXT_COLUMNS = (
    "language", "documents", "tokens", "nats/token", "±", "bits/byte", "±", "perplexity",
)  # fmt: skip

#: What is not known, or does not apply.
_NONE = "-"

_CSV_COLUMNS = (
    "suite", "subject", "metric", "shots", "score", "stderr", "low", "high", "level", "chance",
    "label", "mean_of", "clusters", "samples", "cut", "at_limit", "not_extracted",
)  # fmt: skip


def scores_table(summaries: Sequence[Summary], *, subjects: bool = False) -> Any:
    """A table for a terminal: one row a suite, or one a subject too.

    What the columns mean says `legend`.
    """
    header, *rows = _aligned([_COLUMNS, *_rows(_chosen(summaries, subjects))])
    return table(header, rows)


def scores_markdown(summaries: Sequence[Summary], *, subjects: bool = True) -> str:
    """The same table in Markdown, whose source is aligned too, with the legend below it."""
    rows = [
        [cell.replace("|", "\\|") for cell in row] for row in _rows(_chosen(summaries, subjects))
    ]
    widths = [max(map(_width, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    rule = [
        "-" * (width - 1) + ":" if index in _NUMBERS else "-" * width
        for index, width in enumerate(widths)
    ]
    lines = [_line(_COLUMNS, widths), "| " + " | ".join(rule) + " |"]
    lines += [_line(row, widths) for row in rows]
    return "\n".join([*lines, "", legend(summaries), ""])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        _padded(cell, width, right=index in _NUMBERS)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def scores_csv(summaries: Sequence[Summary]) -> str:
    """One row a suite and one a subject; shares are 0 to 1; what is not known is empty.

    After the columns that all suites have comes one for each other metric of any of them,
    named by lm-eval's key.
    """
    others = list(dict.fromkeys(key for each in summaries for key in each.others))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV_COLUMNS, *others])
    for each in summaries:
        low, high = each.interval or (None, None)
        facts = {**each.to_json(), "low": low, "high": high}
        facts["not_extracted"] = each.not_extracted_share
        writer.writerow([*(facts[c] for c in _CSV_COLUMNS), *(each.others.get(k) for k in others)])
    return text.getvalue()


def scores_json(summaries: Sequence[Summary]) -> str:
    """All that is known of the scores."""
    found = [each.to_json() for each in summaries]
    return json.dumps(found, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def text_table(result: Mapping[str, Any]) -> Any:
    """Likelihoods of texts for a terminal: one row a language, and all together."""
    rows = [
        (
            # A language is whatever a file says: no line break or control character is drawn.
            name if name.isprintable() else repr(name),
            f"{each['documents']:,}",
            f"{each['tokens']:,}",
            f"{each['nats_per_token']:.4f}",
            _figure(each["nats_per_token_stderr"], percent=False, digits=4),
            f"{each['bits_per_byte']:.4f}",
            _figure(each["bits_per_byte_stderr"], percent=False, digits=4),
            _figure(each["perplexity"], percent=False, digits=2),
        )
        for name, each in [*result["languages"].items(), ("all", result["total"])]
    ]
    header, *shown = _aligned([_TEXT_COLUMNS, *rows])
    return table(header, shown)


def legend(summaries: Sequence[Summary]) -> str:
    """What the figures are, in one paragraph."""
    by_subject = sorted({each.suite for each in summaries if each.mean_of == "subjects"})
    means = f", of {', '.join(by_subject)} over subjects" if by_subject else ""
    clustered = [each.suite for each in summaries if each.clusters]
    errors = f", clustered by subject for {', '.join(clustered)}" if clustered else ""
    level = f"{summaries[0].level:.0%}" if summaries else "95%"
    return (
        f"Scores are means over samples{means}. ± is the standard error{errors}. Near chance: "
        f"the {level} interval holds the score of guessing. Cut: samples whose prompt did not "
        "fit the window. At limit: samples whose answer ended at the length limit. Not "
        "extracted: answers in which the filter found nothing, counted as wrong."
    )


def _chosen(summaries: Sequence[Summary], subjects: bool) -> list[Summary]:
    return [each for each in summaries if subjects or each.subject is None]


def _rows(summaries: Sequence[Summary]) -> list[list[str]]:
    return [
        [
            each.suite if each.subject is None else f"{each.suite}: {each.subject}",
            _NONE if each.shots is None else str(each.shots),
            _figure(each.score, percent=each.percent),
            _figure(each.stderr, percent=each.percent),
            _figure(each.chance, percent=each.percent),
            f"{each.samples:,}",
            f"{each.cut:,}",
            f"{each.at_limit:,}",
            _figure(each.not_extracted_share, percent=True),
            _note(each),
        ]
        for each in summaries
    ]


def _note(summary: Summary) -> str:
    """The label; the interval where the standard error says nothing: all answers are equal; and
    the chat layout."""
    notes: list[str] = [summary.label] if summary.label else []
    if summary.layout is not None:
        notes.append(f"chat layout {summary.layout}")
    # By rounding it may come out as next to nothing.
    if summary.interval and (summary.stderr or 0) < 1e-9:
        low, high = (_figure(bound, percent=summary.percent) for bound in summary.interval)
        notes.append(f"{summary.level:.0%} interval {low} to {high}")
    return ", ".join(notes)


def _figure(value: float | None, *, percent: bool, digits: int = 3) -> str:
    if value is None:
        return _NONE
    return f"{100 * value:.1f}%" if percent else f"{value:,.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Numbers that are text (a percent sign, nothing known) moved to the right of a column."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    return [
        [
            _padded(cell, widths[index], right=True) if index in _NUMBERS else cell
            for index, cell in enumerate(row)
        ]
        for row in rows
    ]


def _padded(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _width(cell: str) -> int:
    """Columns on a terminal: a Chinese character takes two."""
    from rich.cells import cell_len

    return cell_len(cell)
