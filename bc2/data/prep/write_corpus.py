"""Write the working set as a corpus: a folder for each source or stratum, in the order of `pos`.

First every part of the working set is surveyed: to which folder each document goes, and how large
it is. This determines where the parts of the corpus begin and end, so that any worker can write any
of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bc2.data.corpus import SCHEMA, PartWriter
from bc2.data.prep.part_files import read_part_file
from bc2.data.splits import SPLITS, Split

Int64 = npt.NDArray[np.int64]

#: Rows that are taken from a part at a time.
_BATCH = 256

#: Edges of the histograms of documents by their characters, and by their quality score.
LENGTH_EDGES = (0, *(digit * 10**power for power in range(1, 7) for digit in (1, 2, 5)))
SCORE_EDGES = tuple(step / 20 for step in range(20))


@dataclass
class WrittenSource:
    """What was written for one source.

    Attributes:
        strata: name -> split -> ``{documents, bytes, characters, parts: [...]}``. Without weights
            the source itself is the only stratum.
        lengths, scores: language -> number of documents in each bin, which begins at an edge.
        seconds: of all workers.
    """

    source: str
    strata: dict[str, dict[str, Any]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    scores: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0


def write_source(
    source: str,
    surveys: Sequence[PartSurvey],
    out: Path,
    part_bytes: int,
    run: Callable[[Iterable[PartTask]], Iterator[WrittenPart]],
) -> WrittenSource:
    """Write the documents of a source, with held-out documents in folders of their own.

    Memory: 16 bytes for each document of the largest stratum.

    Args:
        surveys: of the source's parts, in order.
        part_bytes: UTF-8 bytes of text in a part of the corpus.
        run: calls `write_corpus_part` for each task; results in order.
    """
    written = WrittenSource(source, seconds=sum(survey.seconds for survey in surveys))
    for survey in surveys:
        _add_up(written.lengths, survey.lengths)
        _add_up(written.scores, survey.scores)
    names = sorted({target.stratum for survey in surveys for target in survey.sizes}) or [source]
    targets = [Destination(split, name) for name in names for split in SPLITS]
    tasks = [task for target in targets for task in _tasks(target, surveys, out, part_bytes)]
    made: dict[Destination, list[dict[str, Any]]] = {target: [] for target in targets}
    for task, part in zip(tasks, run(tasks), strict=True):
        made[task.target].append(part.facts)
        written.seconds += part.seconds
    for target in targets:
        facts: dict[str, Any] = {
            unit: sum(part[unit] for part in made[target]) for unit in ("documents", "bytes")
        }
        facts["characters"] = sum(survey.characters.get(target, 0) for survey in surveys)
        facts["parts"] = made[target]
        written.strata.setdefault(target.stratum, {})[target.split] = facts
    return written


def is_held_out(document_id: str, fraction: float) -> bool:
    """Whether a document is held out: the low 64 bits of its id are below `fraction` of 2^64."""
    return int(document_id[16:], 16) < fraction * 2.0**64


# -- the survey ----------------------------------------------------------------------------


class Destination(NamedTuple):
    """A folder of the corpus."""

    split: Split
    stratum: str


class SurveyTask(NamedTuple):
    """A part of the working set to survey."""

    part: Path
    source: str
    heldout_fraction: float


@dataclass
class PartSurvey:
    """Which documents of a part go to which folder.

    Attributes:
        sizes: folder -> UTF-8 bytes of each of its documents, in order.
        characters: folder -> Unicode characters of its documents.
        lengths, scores: as in `WrittenSource`.
    """

    part: Path
    sizes: dict[Destination, Int64] = field(default_factory=dict)
    characters: dict[Destination, int] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    scores: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0


def survey_part(task: SurveyTask) -> PartSurvey:
    """Survey a part, and save beside it the number of the folder to which each row goes."""
    began = time.perf_counter()
    table = read_part_file(task.part)
    found = PartSurvey(task.part)
    sizes = pc.binary_length(table["text"]).to_numpy().astype(np.int64)
    lengths = pc.utf8_length(table["text"]).to_numpy()
    held_out = [is_held_out(each, task.heldout_fraction) for each in table["id"].to_pylist()]
    strata = [task.source] * len(table)
    if "stratum" in table.schema.names:
        strata = table["stratum"].to_pylist()
    splits = (SPLITS[held] for held in held_out)
    rows = [Destination(split, stratum) for split, stratum in zip(splits, strata, strict=True)]
    numbers = {target: number for number, target in enumerate(dict.fromkeys(rows))}
    goes_to = np.array([numbers[row] for row in rows], np.int32)
    for target, number in numbers.items():
        found.sizes[target] = sizes[goes_to == number]
        found.characters[target] = int(lengths[goes_to == number].sum())
    np.save(_beside(task.part), goes_to)
    _count(found.lengths, LENGTH_EDGES, table["lang"], lengths)
    if "quality" in table.schema.names:
        scored = table.select(["lang", "quality"]).filter(pc.is_valid(table["quality"]))
        _count(found.scores, SCORE_EDGES, scored["lang"], scored["quality"].to_numpy())
    found.seconds = time.perf_counter() - began
    return found


def _beside(part: Path) -> Path:
    return part.with_suffix(".places.npy")


def _count(
    table: dict[str, list[int]], edges: tuple[float, ...], langs: pa.ChunkedArray, values: Any
) -> None:
    """Fill `table` with the histogram of the values [rows] of each language."""
    bins = np.searchsorted(edges, values, "right") - 1
    lang_of_row = np.array([lang or "und" for lang in langs.to_pylist()], dtype=object)
    for lang in dict.fromkeys(lang_of_row):
        table[lang] = np.bincount(bins[lang_of_row == lang], minlength=len(edges)).tolist()


def _add_up(total: dict[str, list[int]], more: dict[str, list[int]]) -> None:
    for lang, counts in more.items():
        before = total.get(lang, [0] * len(counts))
        total[lang] = [one + two for one, two in zip(before, counts, strict=True)]


# -- the corpus's parts --------------------------------------------------------------------


class PartSlice(NamedTuple):
    """A run of documents of a part of the working set that go to the same folder."""

    part: Path
    number: int
    """Number of the folder among those of the part."""
    first: int
    """Index of the first document, among those of the part that go to the folder."""
    last: int
    """Index after the last document."""


class PartTask(NamedTuple):
    """One part of the corpus to write."""

    out: Path
    target: Destination
    number: int
    part_bytes: int
    pieces: tuple[PartSlice, ...]


class WrittenPart(NamedTuple):
    """A part of the corpus that was written."""

    facts: dict[str, Any]
    """What ``corpus.json`` says of the part."""
    seconds: float


def _tasks(
    target: Destination, surveys: Sequence[PartSurvey], out: Path, part_bytes: int
) -> Iterator[PartTask]:
    """The parts of a folder: each ends with the document that fills it."""
    mine = [survey for survey in surveys if target in survey.sizes]
    before = np.cumsum([0, *(len(survey.sizes[target]) for survey in mine)])
    empty = np.zeros(0, np.int64)
    bounds = cut(np.concatenate([empty, *(survey.sizes[target] for survey in mine)]), part_bytes)
    for number, (begin, end) in enumerate(pairwise(bounds)):
        pieces = []
        for at in range(np.searchsorted(before, begin, "right") - 1, len(mine)):
            first, last = max(begin, before[at]), min(end, before[at + 1])
            if first >= last:
                break
            which = list(mine[at].sizes).index(target)
            ends = int(first - before[at]), int(last - before[at])
            pieces.append(PartSlice(mine[at].part, which, *ends))
        yield PartTask(out, target, number, part_bytes, tuple(pieces))


def cut(sizes: Int64, limit: int) -> list[int]:
    """Divide documents into runs; each ends with the document that brings it to `limit` bytes.

    Args:
        sizes: bytes of each document.

    Returns:
        Indices where runs begin and end [runs + 1].
    """
    ends = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        before = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
        last = int(np.searchsorted(ends, before + limit)) + 1
        bounds.append(min(last, len(sizes)))
    return bounds


def write_corpus_part(task: PartTask) -> WrittenPart:
    """Write one part of the corpus."""
    began = time.perf_counter()
    table = read_part_file(task.pieces[0].part)
    schema = _corpus_schema(table.schema)
    target = task.target
    with PartWriter(
        task.out, target.split, target.stratum, task.part_bytes, schema, task.number
    ) as writer:
        for piece in task.pieces:
            for rows in _batches(piece, schema):
                writer.add(rows, pc.binary_length(rows["text"]).to_numpy().astype(np.int64))
    (facts,) = writer.parts
    return WrittenPart(facts, time.perf_counter() - began)


def _batches(piece: PartSlice, schema: pa.Schema) -> Iterator[pa.Table]:
    table = read_part_file(piece.part, schema.names).select(schema.names)
    rows = np.flatnonzero(np.load(_beside(piece.part)) == piece.number)[piece.first : piece.last]
    for begin in range(0, len(rows), _BATCH):
        mine = rows[begin : begin + _BATCH]
        if mine[-1] - mine[0] < len(mine):
            yield table.slice(mine[0], len(mine)).cast(schema)
        else:
            yield table.take(pa.array(mine)).cast(schema)


def _corpus_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of a corpus, then those that stages added."""
    own = {*SCHEMA.names, "pos", "stratum"}
    return pa.schema([*SCHEMA, *(column for column in schema if column.name not in own)])
