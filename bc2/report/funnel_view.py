"""A funnel on a terminal: tables of rich, and the examples of each reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from bc2.console import table
from bc2.data.prep.funnel import Example, Funnel
from bc2.report.funnel_rows import (
    PAPER_KEPT,
    FunnelRow,
    funnel_slices,
    language,
    removal_reasons,
    share,
    stage_rows,
)
from bc2.report.number_format import NOTHING, duration
from bc2.report.visible_text import size, visible

#: Examples shown of one reason of one stage, in one language.
MOST_EXAMPLES = 10
#: Characters shown of an example's text: more than an excerpt has.
MOST_CHARACTERS = 1000


def view(funnel: Funnel) -> Any:
    """Every table of a funnel as one renderable."""
    from rich.console import Group
    from rich.text import Text

    lost = lost_line(funnel)
    drawn = [
        stage_table(funnel, "documents"),
        stage_table(funnel, "bytes"),
        slice_table(funnel, "source"),
        slice_table(funnel, "lang"),
        reason_table(funnel),
        Text(lost) if lost else None,
        malformed_table(funnel) if funnel.malformed else None,
    ]
    parts: list[Any] = []
    for one in drawn:
        parts += [one, ""] if one is not None else []
    return Group(*parts[:-1])


def stage_table(funnel: Funnel, unit: Literal["documents", "bytes"]) -> Any:
    """A line a stage, by documents or by bytes; shares are of the raw text, the paper's beside."""
    timed = any(stage.seconds is not None for stage in funnel.stages)
    read, kept = getattr(funnel.read, unit), getattr(funnel.kept, unit)
    lines = [_line(row, unit, timed=timed) for row in stage_rows(funnel)]
    shares = [share(read - kept, read), share(kept, read), 1 - PAPER_KEPT, PAPER_KEPT]
    amounts = [_amount(one, unit) for one in (read, read - kept)]
    lines.append(["in all", *amounts, *map(exact, shares), *([""] if timed else [])])
    left = f"{_amount(kept, unit)}".strip() if unit == "bytes" else f"{kept:,}"
    columns = [unit, "removed", "of raw", "left", "paper", "left", *(["work"] if timed else [])]
    return table(["stage", *columns], lines, f"Funnel by {unit}: {left} left")


def _line(row: FunnelRow, unit: str, *, timed: bool) -> list[object]:
    amounts = [_amount(getattr(row, f"{unit}_{part}"), unit) for part in ("in", "removed")]
    shares = [
        getattr(row, f"{unit}_removed_share"), getattr(row, f"{unit}_left_share"),
        row.paper_removed_share, row.paper_left_share,
    ]  # fmt: skip
    return [row.stage, *amounts, *map(exact, shares), *([duration(row.seconds)] if timed else [])]


def _amount(count: int, unit: str) -> object:
    return _right(size(count)) if unit == "bytes" else count


def slice_table(funnel: Funnel, by: Literal["source", "lang"]) -> Any:
    """A line a source, or language: what each stage removed of its own raw bytes."""
    heads = ["source" if by == "source" else "language", "documents", "kept", "bytes", "kept"]
    lines: list[list[object]] = []
    for one in funnel_slices(funnel, by):
        taken = [exact(row.bytes_removed_share) for row in one.rows]
        lines.append(
            [visible(one.name), one.read.documents,
             exact(share(one.kept.documents, one.read.documents)), _right(size(one.read.bytes)),
             exact(share(one.kept.bytes, one.read.bytes)), *taken]
        )  # fmt: skip
    title = f"By {heads[0]}: bytes that each stage removed, of its own"
    return table([*heads, *(stage.name for stage in funnel.stages)], lines, title)


def reason_table(funnel: Funnel) -> Any:
    """A line a stage and reason: whole documents, and pieces of others."""
    lines: list[list[object]] = [
        [f"{one.stage} {one.reason}", one.documents, _right(size(one.bytes)), one.cut_documents,
         _right(size(one.cut_bytes)), exact(one.bytes_share)]
        for one in removal_reasons(funnel)
    ]  # fmt: skip
    for stage in funnel.stages:
        if stage.rewritten:
            part = exact(share(stage.rewritten, funnel.read.bytes))
            lines.append(
                [f"{stage.name} (rewritten)", 0, "", 0, _right(size(stage.rewritten)), part]
            )
    columns = ("stage, reason", "documents", "bytes", "cut in documents", "bytes cut", "of raw")
    return table(columns, lines, "Removed, by reason")


def lost_line(funnel: Funnel) -> str | None:
    """What copies that were cut stand in no document any more; None if all stand."""
    lost = funnel.lost_passages
    if not lost.passages:
        return None
    return (
        f"Passages lost with their first copy: {lost.passages:,} ({size(lost.bytes)}). They were "
        "cut as copies, and later stages removed the first copies. To keep such text, raise "
        "paragraph_repeats and sentence_repeats, or leave out [corpus.passages]."
    )


def malformed_table(funnel: Funnel) -> Any:
    """A line a source and reason: rows that gave no document, and documents too short."""
    lines = [
        (visible(source), reason, one.documents, _right(size(one.bytes)))
        for source, found in funnel.malformed.items()
        for reason, one in found.items()
    ]
    return table(("source", "reason", "rows", "bytes"), lines, "Left out while reading")


def exact(part: float | None) -> str:
    """A share to a hundredth of a percent, as the paper has them, aligned to the right."""
    return f"{NOTHING if part is None else f'{part:.2%}':>7}"


def _right(text: str) -> str:
    return f"{text:>10}"


# -- examples ------------------------------------------------------------------------------


Shelf = tuple[str, str, str]


def shelves(examples: Iterable[Example], most: int = MOST_EXAMPLES) -> dict[Shelf, list[Example]]:
    """Examples by (stage, reason, language), the first `most` of each, in the order found."""
    found: dict[Shelf, list[Example]] = {}
    for one in examples:
        shelf = found.setdefault((one.stage, one.reason, language(one.lang)), [])
        if len(shelf) < most:
            shelf.append(one)
    return found


def examples_view(funnel: Funnel, most: int = MOST_EXAMPLES) -> Any:
    """What was removed, to read: `most` texts of each reason and language.

    What decided stands between ``>>`` and ``<<``. Width is the terminal's; what would act on it is
    shown as an escape.
    """
    from rich.console import Group
    from rich.text import Text

    if not funnel.examples:
        return Text("No examples were kept.")
    parts: list[Any] = []
    for (stage, reason, lang), found in shelves(funnel.examples, most).items():
        parts.append(Text(visible(f"── {stage}: {reason} ({lang}) ──"), style="bold"))
        for one in found:
            parts += [_head(one), *_bodies(one), Text()]
    return Group(*parts[:-1])


def _head(one: Example) -> Any:
    from rich.text import Text

    cut = "" if one.whole else "cut from"
    words = " ".join(part for part in (cut, one.source, one.origin) if part)
    head = Text(visible(words), style="cyan", overflow="fold")
    if one.detail:
        head.append(f"  {visible(one.detail)}", style="yellow")
    return head


def _bodies(one: Example) -> Iterator[Any]:
    from rich.padding import Padding
    from rich.text import Text

    before, marked, after = (visible(part, MOST_CHARACTERS) for part in one.pieces())
    text = Text(before, overflow="fold")
    if marked:
        text.append(f">>{marked}<<", style="bold")
    text.append(after)
    yield Padding(text, (0, 0, 0, 2))
    if one.against is not None:
        yield Text(f"against {visible(one.against.name)}", style="cyan", overflow="fold")
        against = Text(visible(one.against.text, MOST_CHARACTERS), overflow="fold")
        yield Padding(against, (0, 0, 0, 2))
