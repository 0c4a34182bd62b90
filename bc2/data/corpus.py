"""A corpus on disk: Parquet parts by split and source, and `corpus.json` that lists them.

    train/SOURCE/part-00000.parquet   heldout/SOURCE/part-00000.parquet   corpus.json

Columns: id, text, source, lang, origin_file, origin_row, and what stages of the preparation
noted (quality, paragraph_scores, sentence_scores, cluster). Row groups are small, so that a
part is written and read in bounded memory.

Where text is weighted (`bc2.data.prep.stages.weights`), SOURCE is a stratum: an entry of `sources`
then names the ``source`` it is of, and ``weights`` gives each stratum's share of what is drawn.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bc2.data.documents import Document
from bc2.data.splits import SPLITS, Split
from bc2.errors import DataError, nearest
from bc2.streams import reading

FACTS = "corpus.json"

#: UTF-8 bytes of text in a row group: what a writer holds, and a reader takes at once.
ROW_GROUP_BYTES = 4 * 2**20

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("lang", pa.string()),
        pa.field("origin_file", pa.string(), nullable=False),
        pa.field("origin_row", pa.int64(), nullable=False),
    ]
)


class CorpusPart(NamedTuple):
    """One file of a corpus."""

    split: Split
    source: str
    file: str
    """Path relative to the corpus."""
    documents: int
    bytes: int
    """UTF-8 bytes of text."""


class PartWriter:
    """Writes the documents of one source and split as parts of about `part_bytes` of text.

    Holds at most a row group, and the rows it is given.

    Args:
        first: number of the first part.
    """

    def __init__(
        self,
        root: Path,
        split: Split,
        source: str,
        part_bytes: int,
        schema: pa.Schema = SCHEMA,
        first: int = 0,
    ):
        self.folder = root / split / source
        self.part_bytes = part_bytes
        self.schema = schema
        self.parts: list[dict[str, Any]] = []
        self._first = first
        self._tables: list[pa.Table] = []
        self._held = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._close()

    def add(self, rows: pa.Table, sizes: npt.NDArray[np.int64]) -> None:
        """Append rows of the schema whose texts have `sizes` [rows] UTF-8 bytes.

        A row group ends with the row that fills it, and so does a part: how rows are divided
        among calls changes nothing.
        """
        ends = np.cumsum(sizes)
        first = 0
        while first < len(rows):
            before = int(ends[first - 1]) if first else 0
            begun = self.parts[-1]["bytes"] if self._writer is not None else 0
            room = min(ROW_GROUP_BYTES, self.part_bytes - begun) - self._held
            last = min(int(np.searchsorted(ends, before + room)) + 1, len(rows))
            self._tables.append(rows.slice(first, last - first))
            self._held += int(ends[last - 1]) - before
            full = begun + self._held >= self.part_bytes
            if full or self._held >= ROW_GROUP_BYTES:
                self._flush()
            if full:
                self._close()
            first = last

    def _flush(self) -> None:
        if not self._tables:
            return
        if self._writer is None:
            self._begin()
        assert self._writer is not None
        # In one piece: where pieces meet would show in the file.
        table = pa.concat_tables(self._tables).combine_chunks()
        self._writer.write_table(table, row_group_size=len(table))
        part = self.parts[-1]
        part["documents"] += len(table)
        part["bytes"] += self._held
        self._tables, self._held = [], 0

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{self._first + len(self.parts):05d}.parquet"
        name = path.relative_to(self.folder.parent.parent).as_posix()
        self.parts.append({"file": name, "documents": 0, "bytes": 0})
        self._writer = pq.ParquetWriter(
            path, self.schema, compression="zstd", write_page_checksum=True, use_dictionary=False
        )

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def corpus_facts(corpus: Path) -> dict[str, Any]:
    """The contents of `corpus.json`.

    Raises:
        DataError: the directory is no corpus.
    """
    path = corpus / FACTS
    try:
        facts = json.loads(path.read_bytes())
        if not isinstance(facts, dict) or not isinstance(facts.get("sources"), list):
            raise ValueError("no list of sources")
    except (OSError, ValueError) as error:
        raise DataError(
            f"this is no corpus: {error}", where=str(path), todo="name what `bc2 data prep` made"
        ) from error
    return facts


def carried_weights(facts: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What token shards take over from a corpus: ``weights`` and ``strata``, or nothing.

    Returns:
        ``{"weights": {stratum: integer}, "strata": {stratum: source}}``, or ``{}`` of a corpus
        that states no weights.

    Raises:
        DataError: weights that are none, or not one for each stratum that has text.
    """
    weights = facts.get("weights")
    if weights is None:
        return {}
    strata = {entry["name"]: entry.get("source", entry["name"]) for entry in facts["sources"]}
    filled = {e["name"] for e in facts["sources"] if any(e[split]["parts"] for split in SPLITS)}
    usable = isinstance(weights, Mapping) and all(
        type(weight) is int and weight >= 0 for weight in weights.values()
    )
    if not usable or not filled <= weights.keys() <= strata.keys() or not any(weights.values()):
        raise DataError(
            "the weights are not one integer for each stratum, with one above 0",
            where=str(where / FACTS),
            todo="make the corpus again with `bc2 data prep`",
        )
    return {"weights": {n: weights[n] for n in strata if n in weights}, "strata": strata}


def corpus_parts(
    corpus: Path, split: Split | None = None, source: str | None = None
) -> list[CorpusPart]:
    """The parts of a corpus: by source as the recipe listed them, train before held-out.

    Args:
        source: a source, which stands for all its strata, or a stratum.

    Raises:
        DataError: no such source.
    """
    facts = corpus_facts(corpus)["sources"]
    names = {name: None for entry in facts for name in _names(entry)}
    if source is not None and source not in names:
        guess = nearest(source, names) or ", ".join(names)
        raise DataError(
            f"no source {source!r} in the corpus", where=str(corpus), todo=f"it has {guess}"
        )
    return [
        CorpusPart(part_split, entry["name"], part["file"], part["documents"], part["bytes"])
        for entry in facts
        if source is None or source in _names(entry)
        for part_split in SPLITS
        if split in (None, part_split)
        for part in entry[part_split]["parts"]
    ]


def source_parts(corpus: Path, split: Split) -> Iterator[tuple[str, CorpusPart]]:
    """The parts of a split, each with its source, of which it may hold a stratum."""
    of = {entry["name"]: _names(entry)[0] for entry in corpus_facts(corpus)["sources"]}
    for part in corpus_parts(corpus, split):
        yield of[part.source], part


def _names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What an entry of `sources` answers to: its own name, and the source it is a stratum of."""
    return entry.get("source", entry["name"]), entry["name"]


def read_part(path: Path) -> Iterator[list[Document]]:
    """The documents of a part, a row group at a time.

    Raises:
        DataError: the file is missing or damaged.
    """
    with reading(path):
        try:
            with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as part:
                for group in range(part.num_row_groups):
                    columns = part.read_row_group(group, columns=SCHEMA.names).to_pydict()
                    yield [Document(*row) for row in zip(*columns.values(), strict=True)]
        except pa.ArrowException as error:
            raise EOFError(str(error)) from error


def read_corpus(corpus: Path, split: Split, source: str | None = None) -> Iterator[Document]:
    """The documents of a split in corpus order: source, file, row.

    Raises:
        DataError: no corpus, no such source, or a damaged part.
    """
    for part in corpus_parts(corpus, split, source):
        for documents in read_part(corpus / part.file):
            yield from documents


def clear_directory(path: Path, *, itself: bool) -> None:
    """Take back what a failed stage wrote to a directory, and the directory if it made it."""
    if itself:
        shutil.rmtree(path, ignore_errors=True)
        return
    for child in path.iterdir():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink(missing_ok=True)
