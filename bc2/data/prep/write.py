"""The working set to a corpus on disk: by source or stratum, in the order of `pos`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.corpus import SCHEMA, PartWriter, Split
from bc2.files import sync_tree

#: Rows taken out of a part at a time.
_BATCH = 256

#: Bounds of the histograms: characters of a document, and its score.
LENGTH_EDGES = (0, *(digit * 10**power for power in range(1, 7) for digit in (1, 2, 5)))
SCORE_EDGES = tuple(step / 20 for step in range(20))


@dataclass(frozen=True)
class SourceTask:
    """The parts of one source, and where its documents go."""

    source: str
    parts: tuple[Path, ...]
    out: Path
    part_bytes: int
    heldout_fraction: float


@dataclass
class Written:
    """What one source became.

    Attributes:
        strata: name -> split -> `PartWriter.facts`; the source itself where nothing is weighted.
        lengths, scores: language -> documents from each edge on.
    """

    source: str
    strata: dict[str, dict[str, Any]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    scores: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0


def write_source(task: SourceTask) -> Written:
    """Write the documents of a source, held-out ones apart."""
    began = time.perf_counter()
    written = Written(task.source)
    with ExitStack() as held:
        writers = _Writers(task, held)
        for path in task.parts:
            with pq.ParquetFile(path) as part:
                for batch in part.iter_batches(_BATCH):
                    _write(batch, task, writers, written)
        made = writers.made
    names = sorted({name for _, name in made}) or [task.source]
    for name in names:
        written.strata[name] = {
            split: made[split, name].facts() if (split, name) in made else _EMPTY
            for split in ("train", "heldout")
        }
    for split in ("train", "heldout"):
        if (task.out / split).is_dir():
            sync_tree(task.out / split)
    written.seconds = time.perf_counter() - began
    return written


_EMPTY: dict[str, Any] = {"documents": 0, "bytes": 0, "characters": 0, "parts": []}


def is_held_out(document_id: str, fraction: float) -> bool:
    """Whether a text belongs to the held-out side: the low 64 bits of its id, as a share."""
    return int(document_id[16:], 16) < fraction * 2.0**64


class _Writers:
    """A writer for each split and stratum, made when its first document comes."""

    def __init__(self, task: SourceTask, held: ExitStack):
        self.task = task
        self.made: dict[tuple[Split, str], PartWriter] = {}
        self._held = held

    def of(self, split: Split, name: str, schema: pa.Schema) -> PartWriter:
        if (split, name) not in self.made:
            writer = PartWriter(self.task.out, split, name, self.task.part_bytes, schema)
            self.made[split, name] = self._held.enter_context(writer)
        return self.made[split, name]


def _write(batch: pa.RecordBatch, task: SourceTask, writers: _Writers, written: Written) -> None:
    schema = _corpus_schema(batch.schema)
    rows = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
    sizes = pc.binary_length(rows["text"]).to_numpy().astype(np.int64)
    lengths = pc.utf8_length(rows["text"]).to_numpy()
    held_out = [is_held_out(each, task.heldout_fraction) for each in rows["id"].to_pylist()]
    strata = [task.source] * len(rows)
    if "stratum" in batch.schema.names:
        strata = batch.column("stratum").to_pylist()
    for place in dict.fromkeys(zip(held_out, strata, strict=True)):
        mine = np.array([each == place for each in zip(held_out, strata, strict=True)])
        writer = writers.of("heldout" if place[0] else "train", place[1], schema)
        writer.add(rows.filter(pa.array(mine)), sizes[mine], int(lengths[mine].sum()))
    _count(written.lengths, LENGTH_EDGES, rows["lang"], lengths)
    if "quality" in schema.names:
        scored = rows.filter(pc.is_valid(rows["quality"]))
        _count(written.scores, SCORE_EDGES, scored["lang"], scored["quality"].to_numpy())


def _corpus_schema(schema: pa.Schema) -> pa.Schema:
    """The corpus's own columns first, then those of stages."""
    own = {*SCHEMA.names, "pos", "stratum"}
    return pa.schema([*SCHEMA, *(column for column in schema if column.name not in own)])


def _count(
    table: dict[str, list[int]], edges: tuple[float, ...], langs: pa.ChunkedArray, values: Any
) -> None:
    """Add to the histogram of each language: values [rows] from each of the edges on."""
    bins = np.searchsorted(edges, values, "right") - 1
    spoken = np.array([lang or "und" for lang in langs.to_pylist()], dtype=object)
    for lang in dict.fromkeys(spoken):
        here = np.bincount(bins[spoken == lang], minlength=len(edges))
        table[lang] = (np.array(table.get(lang, 0)) + here).tolist()
