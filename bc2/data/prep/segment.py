"""Apply one segment of stages to one part, and count everything that is removed."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.prep.annotations import write_annotations
from bc2.data.prep.part_files import SUFFIX, read_part_file, write_keys, write_part_file
from bc2.data.prep.stages.base import DETAIL, Outcome, PrepStage
from bc2.data.prep.text.excerpts import MASKS, beginning, excerpt
from bc2.errors import RunFailed
from bc2.files import make_directory, replace_durably

#: Examples kept for each reason and language. Which ones does not depend on the parts.
EXAMPLES = 10

#: Characters of an example's text before what decided, and from there; masks may be longer.
BEFORE, AFTER = 100, 300

#: What is marked where a place is known: the mask that begins there, or the word (the first letters
#: of a long one), with marks such as ``>`` before it.
_MARKED = re.compile(r"(?:[^\w\s]{1,8} ){0,4}\S{1,24}")


class GroupRow(NamedTuple):
    """The documents of a part in one source and language, and the UTF-8 bytes of their text."""

    source: str
    lang: str | None
    documents: int
    bytes: int


class RemovalRow(NamedTuple):
    """What a stage removed from a part, of one source and language, for one reason."""

    source: str
    lang: str | None
    reason: str
    documents: int
    """Whole documents."""
    bytes: int
    cut_documents: int
    """Documents that lost a piece and stay."""
    cut_bytes: int


#: What a stage did to a part. `examples` have the fields of `bc2.data.prep.funnel.Example`, and
#: ``rank``.
StageFacts = TypedDict(
    "StageFacts",
    {
        "name": str,
        "in": list[GroupRow],
        "out": list[GroupRow],
        "removed": list[RemovalRow],
        "examples": list[dict[str, Any]],
        "seconds": float,
    },
)


class PartSeconds(TypedDict):
    """Seconds spent on a part, apart from those of `PrepStage.apply`."""

    keys: dict[str, float]
    """Making keys, by the stage that they are for."""
    rest: float
    """Reading, counting and writing."""


class PartFacts(TypedDict):
    """What a segment did to a part."""

    documents: int
    """Documents after the segment."""
    stages: list[StageFacts]
    seconds: NotRequired[PartSeconds]
    """Missing if a version of bc2 finished the part that did not measure them."""


@dataclass(frozen=True)
class Segment:
    """Stages that are applied in one pass over the text.

    Attributes:
        closing: the stage that settles after the segment, for which the segment makes keys.
    """

    stages: tuple[PrepStage, ...]
    closing: PrepStage | None

    @property
    def title(self) -> str:
        """The title of the segment's progress bar."""
        names = [stage.name for stage in self.stages]
        return ", ".join(names) or (f"keys of {self.closing.name}" if self.closing else "nothing")


@dataclass(frozen=True)
class SegmentTask:
    """A part, and the segment to apply to it.

    Attributes:
        source: file of the part before the segment.
        folder: of the part after the segment, its keys and its facts.
        verdicts: folder of the first stage's verdicts, if that stage settles.
        dropped: folder for dropped documents, if they are to be kept.
    """

    segment: Segment
    source: Path
    folder: Path
    name: str
    verdicts: Path | None
    dropped: Path | None

    @property
    def done(self) -> Path:
        """The file of the facts. It is written last, so if it exists, the part is finished."""
        return self.folder / f"{self.name}.json"

    def known(self) -> PartFacts | None:
        """The facts, if an earlier run finished the part."""
        if not self.done.exists():
            return None
        facts: PartFacts = json.loads(self.done.read_bytes())
        for stage in facts["stages"]:
            # JSON turned these rows into lists.
            stage["in"] = [GroupRow(*row) for row in stage["in"]]
            stage["out"] = [GroupRow(*row) for row in stage["out"]]
            stage["removed"] = [RemovalRow(*row) for row in stage["removed"]]
        return facts


def run_part(task: SegmentTask) -> PartFacts:
    """Apply a segment to a part, and write the part that results, its keys and its facts.

    Raises:
        RunFailed: a stage lost documents without a reason, or changed their order.
    """
    # Pieces of text are in no cycles; looking for some takes a twentieth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _run_part(task)
    finally:
        if collects:
            gc.enable()


def _run_part(task: SegmentTask) -> PartFacts:
    started = time.perf_counter()
    apply_seconds, key_seconds = 0.0, {}
    table = original = read_part_file(task.source)
    stages: list[StageFacts] = []
    before = _counts(table)
    for stage in task.segment.stages:
        verdict = None
        if stage.needs_all and task.verdicts is not None:
            verdict = pq.read_table(task.verdicts / f"{task.name}.parquet")
        began = time.perf_counter()
        outcome = stage.apply(table, verdict)
        seconds = time.perf_counter() - began
        apply_seconds += seconds
        _check(stage, table, outcome)
        after = _counts(outcome.table)
        removed, examples = _removed(stage, table, outcome.removed)
        stages.append(
            {
                "name": stage.name,
                "in": before,
                "out": after,
                "removed": removed,
                "examples": examples,
                "seconds": seconds,
            }
        )
        if task.dropped is not None:
            _keep_dropped(task.dropped / stage.name, task.name, table, outcome.removed)
        if outcome.annotations is not None:
            write_annotations(task.folder, stage.name, task.name, outcome.annotations)
        table, before = outcome.table, after
    if task.segment.closing is not None:
        began = time.perf_counter()
        keys = task.segment.closing.keys(table)
        write_keys(keys, task.folder / "keys" / f"{task.name}.parquet")
        key_seconds[task.segment.closing.name] = time.perf_counter() - began
    _write_result(task, None if table is original else table)
    rest = time.perf_counter() - started - sum(key_seconds.values()) - apply_seconds
    facts: PartFacts = {
        "documents": len(table),
        "stages": stages,
        "seconds": {"keys": key_seconds, "rest": rest},
    }
    replace_durably(task.done, json.dumps(facts, ensure_ascii=False).encode())
    return facts


def _write_result(task: SegmentTask, table: pa.Table | None) -> None:
    """Write the part after the segment; if it is unchanged (None), make a hard link instead."""
    target = task.folder / f"{task.name}{SUFFIX}"
    # A killed run may have left a hard link: writing to it would change the source.
    target.unlink(missing_ok=True)
    if table is None:
        try:
            os.link(task.source, target)
            return
        except OSError:  # a file system without links
            table = read_part_file(task.source)
    write_part_file(table, target)


def _check(stage: PrepStage, table: pa.Table, outcome: Outcome) -> None:
    """Check that the stage gave a reason for each missing document, and kept the order.

    Raises:
        RunFailed: it did not.
    """
    whole = pc.sum(outcome.removed["whole"].cast(pa.int64())).as_py() or 0
    places = outcome.table["pos"].to_numpy()
    unknown = set(pc.unique(outcome.removed["reason"]).to_pylist()) - set(stage.reasons)
    if len(outcome.table) + whole != len(table) or np.any(np.diff(places) <= 0) or unknown:
        raise RunFailed(
            f"stage {stage.name} returned {len(outcome.table)} of {len(table)} documents with "
            f"{whole} dropped; undeclared reasons: {sorted(unknown)}; or the order is wrong",
            todo="this is a defect of bc2: please report it with the recipe",
        )


def text_bytes(table: pa.Table) -> Any:
    """UTF-8 bytes of each text: int64 [n]."""
    return pc.binary_length(table["text"].cast(pa.large_binary())).to_numpy().astype(np.int64)


def _groups(table: pa.Table) -> Iterator[tuple[str, str | None, Any]]:
    """Each source and language, with a mask of its rows."""
    pairs = table.select(["source", "lang"]).group_by(["source", "lang"]).aggregate([])
    for pair in sorted(pairs.to_pylist(), key=lambda p: (p["source"], p["lang"] or "")):
        same = pc.equal(table["source"], pair["source"])
        lang = pair["lang"]
        in_lang = pc.is_null(table["lang"]) if lang is None else pc.equal(table["lang"], lang)
        mask = pc.fill_null(pc.and_(same, in_lang), False).to_numpy(zero_copy_only=False)
        yield pair["source"], lang, mask


def _counts(table: pa.Table) -> list[GroupRow]:
    sizes = text_bytes(table)
    return [
        GroupRow(source, lang, int(mask.sum()), int(sizes[mask].sum()))
        for source, lang, mask in _groups(table)
    ]


def _removed(
    stage: PrepStage, table: pa.Table, removed: pa.Table
) -> tuple[list[RemovalRow], list[dict[str, Any]]]:
    """What was removed, by source, language and reason; and examples of it."""
    if not len(removed):
        return [], []
    at = np.searchsorted(table["pos"].to_numpy(), removed["pos"].to_numpy())
    whole = removed["whole"].to_numpy(zero_copy_only=False)
    sizes = removed["bytes"].to_numpy()
    reasons = np.array(removed["reason"].to_pylist(), dtype=object)
    rows, examples = [], []
    for source, lang, mask in _groups(table):
        here = mask[at]
        for reason in sorted(set(reasons[here])):
            these = here & (reasons == reason)
            gone, cut = these & whole, these & ~whole
            counts = [gone.sum(), sizes[gone].sum(), cut.sum(), sizes[cut].sum()]
            rows.append(RemovalRow(source, lang, reason, *map(int, counts)))
            chosen = np.flatnonzero(these)
            examples += _examples(stage.name, table, removed, at, chosen)
    return rows, examples


def _examples(
    stage: str, table: pa.Table, removed: pa.Table, at: Any, chosen: Any
) -> list[dict[str, Any]]:
    """Up to EXAMPLES of the chosen rows: those whose `pos` has the smallest hash."""
    places = removed["pos"].to_numpy()
    ranked = sorted((example_rank(int(places[row])), int(row)) for row in chosen)[:EXAMPLES]
    found = []
    for rank, row in ranked:
        document = table.slice(int(at[row]), 1).select(
            ["text", "source", "lang", "origin_file", "origin_row"]
        )
        entry = document.to_pylist()[0]
        gone = removed.slice(row, 1).to_pylist()[0]
        lang, detail = entry["lang"], gone["detail"]
        found.append(
            {
                "rank": rank,
                "stage": stage,
                "reason": gone["reason"],
                "source": entry["source"],
                "lang": lang,
                "origin": f"{entry['origin_file']}:{entry['origin_row']}",
                "detail": None if detail is None else beginning(detail, lang, DETAIL),
                **_shown(entry["text"], lang, gone["place"]),
                "whole": gone["whole"],
            }
        )
    return found


def _shown(text: str, lang: str | None, place: int | None) -> dict[str, Any]:
    """`text` and `place` of an example: around the place, or the beginning where none is known."""
    if place is None:
        return {"text": excerpt(text, lang, (0, 0), 0, BEFORE + AFTER).text, "place": None}
    near = text[place : place + AFTER]
    word = _MARKED.match(text, place + len(near) - len(near.lstrip()))
    marked = word.span() if word else (place, place)
    shown = excerpt(text, lang, marked, BEFORE, AFTER - (marked[1] - marked[0]))
    mask = MASKS.match(shown.text, shown.start)
    return {"text": shown.text, "place": list(mask.span() if mask else (shown.start, shown.stop))}


def example_rank(pos: int) -> str:
    """A rank that puts documents into a random order, the same in every run."""
    return hashlib.sha256(pos.to_bytes(8, "big")).hexdigest()[:16]


def _keep_dropped(folder: Path, name: str, table: pa.Table, removed: pa.Table) -> None:
    """Write the documents that a stage dropped or cut, with their whole text and the reason.

    Nothing in them is masked: they are raw text, to look into what the funnel does.
    """
    make_directory(folder)
    at = np.searchsorted(table["pos"].to_numpy(), removed["pos"].to_numpy())
    text = table.take(pa.array(at)).drop_columns(["pos"])
    for column in ("reason", "whole", "detail", "place"):
        text = text.append_column(column, removed[column])
    pq.write_table(text, folder / f"{name}.parquet", compression="zstd")
