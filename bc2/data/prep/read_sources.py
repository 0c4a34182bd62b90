"""Read the sources into parts, with the origin of each row, and count malformed rows.

Sources are divided into units, each of which one worker reads. A unit is a run of files of about
`UNIT_BYTES`, or a whole source if its rows must be read in order (with `max_bytes`, from Hugging
Face, or from the Python environment).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.documents import Drops, SourceFile, SourceRow, text_id
from bc2.data.inputs import source_files
from bc2.data.prep.part_files import SUFFIX, write_part_file
from bc2.data.prep.stages.base import RECORD, ROW_BITS
from bc2.data.readers import file_rows, source_language, source_rows
from bc2.errors import DataError
from bc2.files import replace_durably

#: Bytes of files, compressed or not, in a unit.
UNIT_BYTES = 16 << 20

#: UTF-8 bytes of text in a part; a worker needs a few times as much memory.
PART_BYTES = 32 << 20


@dataclass(frozen=True)
class Unit:
    """What one worker reads.

    Attributes:
        number: position of the unit in the order of sources and file names.
        first_file: the index of the first of `files` over all sources, for `pos`.
        files: None for the whole source, whose files are found while reading.
        size: bytes of the files on disk.
    """

    number: int
    source: SourceConfig
    first_file: int
    files: tuple[SourceFile, ...] | None
    size: int


class ReadTask(NamedTuple):
    """A unit to read, and how and where to write its parts."""

    unit: Unit
    malformed: str
    min_characters: int
    folder: Path
    part_bytes: int


def plan_units(config: CorpusConfig) -> list[Unit]:
    """Divide all sources into units, in the order of sources and file names.

    Raises:
        DataError: a source has no files, or a file cannot be read.
    """
    units: list[Unit] = []
    files_before = 0
    for source in config.sources:
        files = [] if source.hf is not None else source_files(source)
        whole = source.max_bytes is not None or source.environment or source.hf
        for run in [None] if whole else _runs(files):
            size = sum(file.path.stat().st_size for file in (run or files))
            units.append(Unit(len(units), source, files_before, run, size))
            files_before += len(run or files or ("one",))
    return units


def _runs(files: list[SourceFile]) -> Iterator[tuple[SourceFile, ...]]:
    run: list[SourceFile] = []
    size = 0
    for file in files:
        run.append(file)
        size += file.path.stat().st_size
        if size >= UNIT_BYTES:
            yield tuple(run)
            run, size = [], 0
    if run:
        yield tuple(run)


def read_unit(task: ReadTask) -> dict[str, Any]:
    """Write the parts of a unit, unless an earlier run did.

    Returns:
        ``{"source", "parts": [names], "read": {documents, bytes}, "drops": by reason,
        "rows": the first malformed rows as FILE:ROW, "seconds"}``. A file with these facts is
        written after the parts.

    Raises:
        DataError: a file is damaged, or a row is malformed and the recipe says to stop there.
    """
    done = task.folder / f"{task.unit.number:06d}.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_bytes())
        return found
    began = time.perf_counter()
    reader = _Reader(task)
    reader.run()
    facts = {**reader.facts(), "seconds": time.perf_counter() - began}
    replace_durably(done, json.dumps(facts).encode())
    return facts


class _Reader:
    """Reads the rows of one unit, and writes a part whenever it has enough text for one."""

    def __init__(self, task: ReadTask):
        self.task = task
        source = task.unit.source
        self.drops = Drops(source.name, "stop" if task.malformed == "stop" else "skip")
        self.parts: list[str] = []
        self.rows: list[tuple[Any, ...]] = []
        self.held = self.documents = self.size = 0
        files = task.unit.files
        if files is None and source.hf is None:
            files = tuple(source_files(source))
        self.numbers = {file.name: number for number, file in enumerate(files or ())}

    def run(self) -> None:
        unit = self.task.unit
        if unit.files is None:
            rows = source_rows(unit.source, self.drops)
        else:
            rows = file_rows(unit.source, unit.files, self.drops)
        for row in rows:
            self._take(row)
        self._flush()

    def _take(self, row: SourceRow) -> None:
        size = len(row.utf8)
        self.documents += 1
        self.size += size
        if len(row.text) < self.task.min_characters:
            self.drops.drop("too_short", size)
            return
        self.rows.append((self._position(row), text_id(row.utf8), row.utf8, row.file, row.row))
        self.held += size
        if self.held >= self.task.part_bytes:
            self._flush()

    def _position(self, row: SourceRow) -> int:
        # A dataset from the hub is one file, whatever it is called.
        number = self.task.unit.first_file + self.numbers.get(row.file, 0)
        return number << ROW_BITS | row.row

    def _flush(self) -> None:
        if not self.rows:
            return
        name = f"{self.task.unit.number:06d}-{len(self.parts):05d}"
        pos, ids, texts, files, rows = map(list, zip(*self.rows, strict=True))
        source = self.task.unit.source
        columns = {
            "pos": pos,
            "id": ids,
            # A view, because a cast would check again that it is UTF-8.
            "text": pa.array(texts, pa.large_binary()).view(pa.large_string()),
            "source": pa.repeat(source.name, len(pos)),
            "lang": pa.repeat(pa.scalar(source_language(source), pa.string()), len(pos)),
            "origin_file": files,
            "origin_row": rows,
        }
        write_part_file(pa.table(columns, schema=RECORD), self.task.folder / f"{name}{SUFFIX}")
        self.parts.append(name)
        self.rows, self.held = [], 0

    def facts(self) -> dict[str, Any]:
        return {
            "source": self.task.unit.source.name,
            "parts": self.parts,
            "read": {"documents": self.documents, "bytes": self.size},
            "drops": self.drops.facts(),
            "rows": self.drops.rows,
        }


def check_malformed(units: list[dict[str, Any]], limit: float) -> None:
    """Check that at most a share `limit` of the rows could not be read.

    Args:
        units: what `read_unit` returned for each unit.

    Raises:
        DataError: it is more; the error names the first of those rows.
    """
    bad = sum(
        entry["documents"]
        for unit in units
        for reason, entry in unit["drops"].items()
        if reason != "too_short"
    )
    rows = bad + sum(unit["read"]["documents"] for unit in units)
    if bad > limit * rows:
        first = [row for unit in units for row in unit["rows"]][:3]
        raise DataError(
            f"{bad:,} of {rows:,} rows could not be read: corpus.max_malformed is {limit:g}",
            where=", ".join(first),
            todo="look at these rows, set text_field or encoding, or raise corpus.max_malformed",
        )
