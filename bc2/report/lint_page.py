"""The page of a lint: one HTML file, which loads nothing from anywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import bc2
from bc2.align.lint.lint_report import LintReport
from bc2.align.lint.shown_tokens import ShownRow, ShownSample, ShownToken
from bc2.files import replace_durably
from bc2.report import lint_view
from bc2.report.lint_pairs import pair_tables
from bc2.report.number_format import duration, moment
from bc2.report.visible_text import visible

#: Tokens of a conversation, and of a packed row, that the page shows.
MOST_TOKENS, MOST_ROW_TOKENS = 1_000, 8_000
#: Languages that have a line of their own.
MOST_LANGUAGES = 12


class LintTile(NamedTuple):
    """One figure of the summary."""

    label: str
    value: str
    more: str = ""
    bad: bool = False


def write(
    report: LintReport, out: Path, examples: Mapping[str, Sequence[Sequence[ShownSample]]],
    row: ShownRow | None,
) -> Path:  # fmt: skip
    """Write the page to a file; an older one is replaced in one go. Arguments as `render`."""
    replace_durably(out, render(report, examples, row).encode())
    return out


def render(
    report: LintReport,
    examples: Mapping[str, Sequence[Sequence[ShownSample]]],
    row: ShownRow | None,
) -> str:
    """The page as HTML.

    Args:
        examples: by the code of a finding, its first places, of each the conversation or both
            answers.
        row: a packed row.
    """
    from jinja2 import Environment, StrictUndefined

    # What stood in a file is shown as text, whatever it looks like.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=_count, exact=_exact)
    template = environment.from_string((files(__package__) / "lint.html.j2").read_text("utf-8"))
    return template.render(
        title=visible(report.name),
        verdict=lint_view.said(report),
        errors=report.errors,
        written=f"{moment(time.time())} UTC",
        version=bc2.__version__,
        origin=f"{report.unit} {report.data}, read as {report.base} reads them",
        tiles=list(_tiles(report)),
        findings=report.findings,
        policies=lint_view.POLICIES,
        unit=report.unit,
        pair_tables=pair_tables(report.pairs),
        shown=list(_findings(report, examples)),
        row=None if row is None else _row(row),
        bars=list(_bars(report)),
        quantiles=report.lengths.quantiles if report.lengths is not None else {},
        figures=list(lint_view.figures(report)),
        sources=[
            (lint_view.SOURCE_COLUMNS, list(lint_view.source_lines(report))),
            (lint_view.ORIGIN_COLUMNS, list(lint_view.origin_lines(report))),
        ],
        languages=_languages(report),
        benchmarks=list(_benchmarks(report)),
        searched=lint_view.searched(report),
        unreadable={name: visible(why) for name, why in report.overlaps.unreadable.items()},
        proof=report.proof,
    )


def _tiles(report: LintReport) -> Iterator[LintTile]:
    lengths, packing, proof = report.lengths, report.packing, report.proof
    kinds = ", ".join(one.code for one in report.findings if one.is_error)
    yield LintTile("errors", _count(report.errors), kinds, report.errors > 0)
    splits = ", ".join(f"{name} {count:,}" for name, count in report.splits.items())
    yield LintTile(report.unit, _count(report.rows), splits)
    if lengths is not None:
        yield LintTile(
            "tokens",
            _count(lengths.tokens),
            f"{lengths.mean:,.1f} a {'pair' if report.pairs else 'sample'}",
        )
        yield LintTile("learnt", _exact(lengths.trained_share), f"{lengths.trained:,} tokens")
    if packing is not None:
        rows = f"{packing.rows:,} rows of {packing.sequence_length:,}"
        yield LintTile("rows are full", _exact(packing.filled), rows)
    if proof is not None:
        said = f"gradients within {proof.gradient_difference:.0e}"
        yield LintTile("packed as alone", "yes" if proof.holds else "no", said, not proof.holds)
    yield LintTile("took", duration(report.seconds))


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _exact(part: float) -> str:
    return f"{part:.2%}"


def _findings(
    report: LintReport, examples: Mapping[str, Sequence[Sequence[ShownSample]]]
) -> Iterator[dict[str, Any]]:
    for found in lint_view.shown_findings(report):
        samples = examples.get(found.code, ())
        yield {
            "finding": found,
            "policy": lint_view.POLICIES[found.policy],
            "by_source": {visible(name): count for name, count in found.by_source.items()},
            "examples": [
                _sample(sample, MOST_TOKENS, lint_view.place_cells(place)[3])
                for place, together in zip(found.examples, samples, strict=False)
                for sample in together
            ],
        }


def _row(row: ShownRow) -> dict[str, Any]:
    samples, room = [], MOST_ROW_TOKENS
    for sample in row.samples:
        if room > 0:
            samples.append(_sample(sample, room))
        room -= sample.length
    return {"samples": samples, "more": len(row.samples) - len(samples), "padding": row.padding}


def _sample(sample: ShownSample, most: int, why: str = "") -> dict[str, Any]:
    """A conversation for the template.

    Args:
        why: what is said of it, where that is no fault.
    """
    source, file, row, _ = lint_view.place_cells(sample.place)
    return {
        "source": source,
        "origin": f"{file}, row {row:,}" + (f", {sample.part}" if sample.part else ""),
        "faults": [visible(fault) for fault in sample.faults] or [why],
        "length": sample.length,
        "trained": sample.trained,
        "tokens": [_token(token) for token in sample.tokens[:most]],
        "more": max(0, len(sample.tokens) - most) + sample.more,
    }


def _token(token: ShownToken) -> dict[str, str]:
    """Text, classes, and what the pointer shows."""
    learnt = f", {visible(token.learns)} is learnt here" if token.learns else ", learnt"
    weight = f", weight {token.weight:g}" if token.trained and token.weight != 1 else ""
    numbers = " ".join(map(str, token.ids))
    classes = ["c"] * token.control + ["t"] * (token.trained and not token.learns)
    return {
        "text": visible(token.text).replace("\n", "↵\n"),
        "classes": " ".join(classes) or "r",
        "learns": visible(token.learns),
        "title": f"id {numbers}{learnt if token.trained else ''}{weight}",
    }


def _bars(report: LintReport) -> Iterator[tuple[str, int, float]]:
    """Lengths, samples, and the bar's part of the longest."""
    histogram = report.lengths.histogram if report.lengths is not None else ()
    most = max((count for _, _, count in histogram), default=0)
    for start, stop, count in histogram:
        yield f"{start:,} to {stop - 1:,}", count, 100 * count / most


def _languages(report: LintReport) -> list[tuple[str, int, float]]:
    """The most frequent ones, and the others together."""
    total, found = sum(report.languages.values()) or 1, list(report.languages.items())
    others = found[MOST_LANGUAGES:]
    if others:
        summed = sum(count for _, count in others)
        found = [*found[:MOST_LANGUAGES], (f"{len(others)} others", summed)]
    return [(visible(code), count, count / total) for code, count in found]


def _benchmarks(report: LintReport) -> Iterator[dict[str, Any]]:
    for one in report.overlaps.benchmarks:
        yield {
            "name": one.benchmark,
            "texts": one.texts,
            "found": one.found,
            "rows": one.rows,
            "examples": [lint_view.place_cells(place) for place in one.examples],
        }
