"""What linting found on a terminal: tables of rich, and conversations as coloured tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bc2.align.lint.lint_report import Finding, LintReport, PackingProof, Place
from bc2.align.lint.shown_tokens import ShownRow, ShownSample, ShownToken
from bc2.console import table
from bc2.report.lint_pairs import pair_figures, pair_tables
from bc2.report.number_format import duration
from bc2.report.visible_text import visible

#: What the recipe does with conversations of which something is said.
POLICIES = {
    "stop": "error: nothing is trained",
    "drop": "left out",
    "rounds": "cut to whole rounds",
    "": "trained on",
}

#: Languages that a line names.
_MOST_LANGUAGES = 6
#: Characters of what is said of a place.
_MOST_CHARACTERS = 160

#: How tokens look: what the model reads, what it learns, and what is no text.
_READ, _TRAINED, _CONTROL, _TRAINED_CONTROL = "dim", "green", "cyan reverse", "green reverse"


def view(report: LintReport, row: ShownRow | None = None) -> Any:
    """Every table of a report as one renderable.

    Args:
        row: a packed row, of which one sample is shown as tokens.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [finding_table(report)]
    for found in shown_findings(report):
        parts += ["", example_table(found)]
    parts += ["", table(("", ""), list(figures(report)), "Figures")]
    parts += ["", table(SOURCE_COLUMNS, list(source_lines(report)), "Sources")]
    parts += ["", table(ORIGIN_COLUMNS, list(origin_lines(report)))]
    for columns, lines, title in pair_tables(report.pairs):
        parts += ["", table(columns, lines, title)]
    if any(one.rows for one in report.overlaps.benchmarks):
        parts += ["", table(BENCHMARK_COLUMNS, list(benchmark_lines(report)), "Benchmarks")]
    if row is not None:
        parts += ["", Text(f"Of the {report.unit} one as the model learns it")]
        parts += [samples_view(_shortest(row))]
    verdict = Text(said(report), style="bold red" if report.errors else "bold green")
    return Group(*parts, "", verdict)


def _shortest(row: ShownRow) -> Sequence[ShownSample]:
    """The shortest conversation of a row, or both answers of the shortest pair."""
    size = 2 if row.samples[0].part else 1
    starts = range(0, len(row.samples), size)
    units = [row.samples[start : start + size] for start in starts]
    return min(units, key=lambda unit: sum(one.length for one in unit))


def said(report: LintReport) -> str:
    """The whole in a line."""
    if report.nothing_left:
        return f"of {report.rows:,} {report.unit} none is left to train on"
    if report.errors:
        return f"{report.errors:,} errors in {report.rows:,} {report.unit}"
    return f"no errors in {report.rows:,} {report.unit}"


def shown_findings(report: LintReport) -> list[Finding]:
    """Findings with examples, errors first."""
    found = [one for one in report.findings if one.count]
    return sorted(found, key=lambda one: not one.is_error)


def finding_table(report: LintReport) -> Any:
    """A line a kind, those that were looked for and not found included."""
    lines = [
        (one.code, one.count, POLICIES[one.policy] if one.count else "", one.says)
        for one in report.findings
    ]
    return table(("finding", report.unit, "in training", "what it is"), lines)


def example_table(found: Finding) -> Any:
    """The first places of a finding."""
    lines = [place_cells(one) for one in found.examples]
    by = ", ".join(f"{visible(name)}: {count:,}" for name, count in found.by_source.items())
    return table(("source", "file", "row", "why"), lines, f"{found.code}: {found.count:,} ({by})")


def place_cells(place: Place) -> tuple[str, str, int, str]:
    """Source, file, row, and what is said of it."""
    why = visible(" ".join(place.why.split()), _MOST_CHARACTERS)
    return visible(place.source), visible(place.file), place.row, why


def figures(report: LintReport) -> Iterator[tuple[str, str]]:
    """Names and values, as text."""
    splits = ", ".join(f"{name} {count:,}" for name, count in report.splits.items())
    yield report.unit, f"{report.rows:,} ({splits})"
    yield "layout", f"{report.layout}, learnt: {report.train_on}"
    lengths, packing = report.lengths, report.packing
    if lengths is not None:
        named = ", ".join(f"{name} {value:,}" for name, value in lengths.quantiles.items())
        yield (
            f"tokens a {'pair' if report.pairs else 'sample'}",
            f"{named}; mean {lengths.mean:,.1f}",
        )
        yield (
            "learnt",
            f"{lengths.trained:,} of {lengths.tokens:,} tokens, {lengths.trained_share:.1%}",
        )
    if packing is not None:
        packed = "pairs" if report.pairs else "samples"
        rows = f"{packing.samples:,} {packed} in {packing.rows:,} rows"
        yield "an epoch", f"{rows} of {packing.sequence_length:,}, {packing.filled:.2%} full"
    if report.pairs is not None:
        yield from pair_figures(report.pairs)
    yield "copies", copies(report)
    yield "languages", languages(report.languages)
    yield "benchmarks", searched(report)
    yield "packed as alone", proven(report.proof)
    yield "took", duration(report.seconds)


def copies(report: LintReport) -> str:
    """How many conversations were there before."""
    within = sum(one.copies for one in report.sources)
    return f"{within:,} within a source, {report.copies_of_other_sources:,} of other sources"


def languages(found: dict[str, int]) -> str:
    """The most frequent languages with their shares."""
    total = sum(found.values()) or 1
    shown = [f"{code} {count / total:.2%}" for code, count in list(found.items())[:_MOST_LANGUAGES]]
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def searched(report: LintReport) -> str:
    """Which benchmarks were searched for, and which never were."""
    overlaps = report.overlaps
    here = [one.benchmark for one in overlaps.benchmarks]
    never = [*overlaps.missing, *overlaps.unreadable]
    if not here and overlaps.unreadable:
        name, why = next(iter(overlaps.unreadable.items()))
        return f"never searched for: {name} and others cannot be read: {visible(why)}"
    if not here:
        return "never searched for: none lies here (BC2_BENCH_DATA names their folder)"
    found = f"{overlaps.rows:,} {report.unit} share words with one of {', '.join(here)}"
    return found + (f"; never searched for: {', '.join(never)}" if never else "")


def proven(proof: PackingProof | None) -> str:
    """What was proven, with its figures."""
    if proof is None:
        return "not tried: there is no sample"
    rows = f"{proof.samples:,} samples in {proof.rows:,} rows ({proof.model})"
    same = f"losses within {proof.loss_difference:.0e}, gradients {proof.gradient_difference:.0e}"
    moved = f"{proof.changed:,} changed tokens moved others by {proof.leaked:.0e}"
    without = f"without boundaries losses would be off by {proof.unbounded:.0e}"
    verdict = "yes" if proof.holds else "NO"
    return f"{verdict}: {rows}: {same}; {moved}; {without}"


SOURCE_COLUMNS = (
    "source", "rows", "times", "samples", "tokens", "learnt", "copies", "skipped",
)  # fmt: skip


def source_lines(report: LintReport) -> Iterator[tuple[object, ...]]:
    """A line a source, by `SOURCE_COLUMNS`."""
    for one in report.sources:
        learnt = f"{one.trained / one.tokens:.1%}" if one.tokens else ""
        yield (
            visible(one.name), one.rows, f"{one.times:g}", one.samples, one.tokens,
            learnt, one.copies, sum(one.skipped.values()),
        )  # fmt: skip


ORIGIN_COLUMNS = ("source", "format", "languages", "licence")


def origin_lines(report: LintReport) -> Iterator[tuple[object, ...]]:
    """What the conversations of each source are, by `ORIGIN_COLUMNS`."""
    for one in report.sources:
        formats = ", ".join(one.formats) + (", made by bc2" if one.made else "")
        yield visible(one.name), formats, languages(dict(one.languages)), visible(one.licence or "")


BENCHMARK_COLUMNS = ("benchmark", "its texts", "found", "in", "first")


def benchmark_lines(report: LintReport) -> Iterator[tuple[object, ...]]:
    """A line a benchmark of which something was found."""
    for one in report.overlaps.benchmarks:
        if one.rows:
            _, file, row, why = place_cells(one.examples[0]) if one.examples else ("", "", "", "")
            first = f"{file}, row {row}: {why}" if one.examples else ""
            yield one.benchmark, one.texts, one.found, one.rows, first


# -- tokens --------------------------------------------------------------------------------


def legend() -> Any:
    """What the colours say."""
    from rich.text import Text

    return Text.assemble(
        ("read", _READ), "  ", ("learnt", _TRAINED), "  ", ("control token", _CONTROL), "  ",
        ("learnt control token", _TRAINED_CONTROL), "  ",
        ("→X", _TRAINED), " X is learnt in its place",
    )  # fmt: skip


def samples_view(samples: Sequence[ShownSample]) -> Any:
    """Conversations as coloured tokens, each under its place."""
    from rich.console import Group

    parts: list[Any] = [legend()]
    for one in samples:
        parts += ["", *_sample(one)]
    return Group(*parts)


def _sample(one: ShownSample) -> Iterator[Any]:
    from rich.text import Text

    source, file, row, _ = place_cells(one.place)
    part = f", {one.part}" if one.part else ""
    counts = f"{one.length:,} tokens, {one.trained:,} learnt"
    yield Text(f"{source}, {file}, row {row:,}{part}: {counts}", style="bold", overflow="fold")
    for fault in one.faults:
        yield Text(visible(fault), style="red", overflow="fold")
    shown = Text(overflow="fold")
    for token in one.tokens:
        shown.append(visible(token.text), style=_style(token))
        if token.learns:
            shown.append(f"→{visible(token.learns)}", style=_TRAINED)
    if one.tokens:
        yield shown


def _style(token: ShownToken) -> str:
    if token.control:
        return _TRAINED_CONTROL if token.trained and not token.learns else _CONTROL
    return _TRAINED if token.trained else _READ
