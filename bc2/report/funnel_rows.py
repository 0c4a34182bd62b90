"""A funnel in rows of numbers: by stage, source, language and reason, beside the paper's.

Shares are of the raw text, as in Figure 2 of Baichuan 2 (arXiv 2309.10305).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from bc2.data.prep.funnel import Amount, Funnel, GroupAmount, total

#: A row that is no stage: what went before the first one got anything.
READING = "read"

#: A language that no source states.
NOT_STATED = "not stated"


def language(lang: str | None) -> str:
    """A language as a table names it; "und" is BCP 47's word for one that is not known."""
    return NOT_STATED if lang in (None, "", "und") else lang


class PaperStep(NamedTuple):
    """One step of the paper's funnel, in shares of its raw text."""

    title: str
    removed: float
    left: float


#: Baichuan 2, Figure 2, by the name of our stage; what the figure measures (documents, bytes or
#: tokens) the paper does not say.
PAPER: dict[str, PaperStep] = {
    "exact": PaperStep("exact deduplication", 0.2989, 0.7011),
    "heuristics": PaperStep("heuristics", 0.0177, 0.6834),
    "quality": PaperStep("sentence-wise quality filter", 0.0306, 0.6528),
    "passages": PaperStep("sentence-wise, paragraph-wise deduplication", 0.1447, 0.5081),
    "near": PaperStep("document-wise deduplication", 0.1913, 0.3168),
}
PAPER_KEPT = 0.3168


@dataclass(frozen=True)
class FunnelRow:
    """One step's numbers. Shares are of the raw text; None where there was none."""

    stage: str
    documents_in: int
    documents_removed: int
    documents_out: int
    bytes_in: int
    bytes_removed: int
    """Below zero where a stage made text longer."""
    bytes_out: int
    documents_removed_share: float | None
    documents_left_share: float | None
    bytes_removed_share: float | None
    bytes_left_share: float | None
    paper_removed_share: float | None
    paper_left_share: float | None
    seconds: float | None


@dataclass(frozen=True)
class FunnelSlice:
    """The funnel of one source, or of one language; shares are of its own raw text."""

    name: str
    read: Amount
    kept: Amount
    rows: tuple[FunnelRow, ...]


@dataclass(frozen=True)
class Reason:
    """What one stage removed for one reason."""

    stage: str
    reason: str
    documents: int
    bytes: int
    cut_documents: int
    """A document cut for two reasons counts for both."""
    cut_bytes: int
    bytes_share: float | None
    """All its bytes, whole and cut, of the raw text."""


def share(part: int, whole: int) -> float | None:
    """`part` of `whole`; None of nothing."""
    return part / whole if whole else None


def stage_rows(funnel: Funnel) -> list[FunnelRow]:
    """A row a stage, in order. Where the stages began with less than was read, a row
    `READING` comes first, so that what is removed and what is left make the whole."""
    first = total(funnel.stages[0].before) if funnel.stages else funnel.read
    found = [] if first == funnel.read else [_row(READING, funnel.read, first, funnel.read, None)]
    return found + _rows(funnel, funnel.read, lambda group: True)


def funnel_slices(funnel: Funnel, by: Literal["source", "lang"]) -> list[FunnelSlice]:
    """The funnel of each source, or language, in the order in which they first came in.

    Raw text is here what came into the first stage: what was read before it is not known by
    source.
    """
    names = {
        getattr(one, by): None for stage in funnel.stages for one in stage.before + stage.after
    }
    found = []
    for name in names:
        mine = partial(_is, by, name)
        read, kept = _of(funnel.stages[0].before, mine), _of(funnel.stages[-1].after, mine)
        title = language(name) if by == "lang" else name
        found.append(FunnelSlice(title, read, kept, tuple(_rows(funnel, read, mine))))
    return found


def removal_reasons(funnel: Funnel) -> list[Reason]:
    """Every reason that removed something, by stage, the one with the most bytes first."""
    found = []
    for stage in funnel.stages:
        mine = [
            Reason(
                stage.name, reason, one.documents, one.bytes, one.cut_documents, one.cut_bytes,
                share(one.bytes + one.cut_bytes, funnel.read.bytes),
            )
            for reason, one in stage.removed.items()
            if one.documents or one.cut_documents or one.bytes or one.cut_bytes
        ]  # fmt: skip
        found += sorted(mine, key=lambda one: (-one.bytes - one.cut_bytes, one.reason))
    return found


def as_json(funnel: Funnel) -> dict[str, Any]:
    """Every number, as JSON data; the examples stay in `funnel.json`."""
    return {
        "read": funnel.read.model_dump(),
        "kept": funnel.kept.model_dump(),
        "kept_share": {
            unit: share(getattr(funnel.kept, unit), getattr(funnel.read, unit))
            for unit in ("documents", "bytes")
        },
        "paper_kept_share": PAPER_KEPT,
        "stages": [asdict(row) for row in stage_rows(funnel)],
        "by_source": [_slice_json(one) for one in funnel_slices(funnel, "source")],
        "by_language": [_slice_json(one) for one in funnel_slices(funnel, "lang")],
        "reasons": [asdict(one) for one in removal_reasons(funnel)],
        "lost_passages": funnel.lost_passages.model_dump(),
        "rewritten_bytes": {
            stage.name: stage.rewritten for stage in funnel.stages if stage.rewritten
        },
        "malformed": {
            source: {reason: one.model_dump() for reason, one in found.items()}
            for source, found in funnel.malformed.items()
        },
    }


def _slice_json(one: FunnelSlice) -> dict[str, Any]:
    amounts = {"read": one.read.model_dump(), "kept": one.kept.model_dump()}
    return {"name": one.name, **amounts, "stages": [asdict(row) for row in one.rows]}


def _rows(funnel: Funnel, raw: Amount, mine: Callable[[GroupAmount], bool]) -> list[FunnelRow]:
    return [
        _row(
            stage.name, _of(stage.before, mine), _of(stage.after, mine), raw,
            stage.seconds,
        )
        for stage in funnel.stages
    ]  # fmt: skip


def _is(by: str, name: str | None, group: GroupAmount) -> bool:
    mine: str | None = getattr(group, by)
    return mine == name


def _of(groups: Iterable[GroupAmount], mine: Callable[[GroupAmount], bool]) -> Amount:
    return total(group for group in groups if mine(group))


def _row(name: str, before: Amount, after: Amount, raw: Amount, seconds: float | None) -> FunnelRow:
    paper = PAPER.get(name)
    documents, size = before.documents - after.documents, before.bytes - after.bytes
    return FunnelRow(
        stage=name,
        documents_in=before.documents,
        documents_removed=documents,
        documents_out=after.documents,
        bytes_in=before.bytes,
        bytes_removed=size,
        bytes_out=after.bytes,
        documents_removed_share=share(documents, raw.documents),
        documents_left_share=share(after.documents, raw.documents),
        bytes_removed_share=share(size, raw.bytes),
        bytes_left_share=share(after.bytes, raw.bytes),
        paper_removed_share=paper.removed if paper else None,
        paper_left_share=paper.left if paper else None,
        seconds=seconds,
    )
