"""Chats on disk: a Parquet file a split, and `chats.json` that says what they are.

    train.parquet   heldout.parquet   chats.json

Columns: source, file, row (from 1), format, messages (JSON text). Rows stand in the order of
sources, files and rows. Row groups are small, so that reading may begin anywhere.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.chats.conversation import Conversation
from bc2.data.documents import SourceFile
from bc2.data.splits import SPLITS, Split
from bc2.data.tables import open_parquet
from bc2.errors import DataError

FACTS = "chats.json"

#: What a row group holds: conversations, and UTF-8 bytes of them.
_GROUP_ROWS = 1024
_GROUP_BYTES = 2**20

#: Row groups of a split that `Chats.at` keeps.
_KEPT = 8

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("messages", pa.string(), nullable=False),
    ]
)


class SplitWriter:
    """Writes the conversations of one split; holds a row group at most."""

    def __init__(self, folder: Path, split: Split):
        self.count = 0
        self._rows: list[tuple[Any, ...]] = []
        self._held = 0
        # Of few values, these columns are many times as small as a dictionary.
        self._writer = pq.ParquetWriter(
            folder / f"{split}.parquet",
            SCHEMA,
            compression="zstd",
            write_page_checksum=True,
            use_dictionary=["source", "file", "format"],
        )

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
        self._writer.close()

    def add(self, chat: Conversation, form: str) -> None:
        """Append a conversation, whose row had the format `form`."""
        said = orjson.dumps(chat.messages)
        self._rows.append((chat.source, chat.file, chat.row, form, said.decode()))
        self._held += len(said)
        self.count += 1
        if len(self._rows) >= _GROUP_ROWS or self._held >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = [
            pa.array(values, field.type)
            for values, field in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)
        ]
        table = pa.Table.from_arrays(columns, schema=SCHEMA)
        self._writer.write_table(table, row_group_size=len(table))
        self._rows, self._held = [], 0


class Chats:
    """Conversations as a stage made them, read in bounded memory.

    Attributes:
        sources: their names, in the order of the recipe.
        times: how often an epoch reads each conversation of a source.
        facts: the contents of `chats.json`.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]):
        self.path = path
        self.facts = facts
        self.sources: tuple[str, ...] = tuple(source["name"] for source in facts["sources"])
        self.times: tuple[float, ...] = tuple(source["times"] for source in facts["sources"])
        self._splits: dict[Split, _SplitReader] = {}

    @classmethod
    def open(cls, path: Path) -> Chats:
        """Open what the stage of chats wrote.

        Raises:
            DataError: the directory holds no chats.
        """
        place = path / FACTS
        try:
            facts = json.loads(place.read_bytes())
            return cls(path, facts)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"these are no chats: {error}", where=str(place),
                todo="name what `bc2 data chats` made",
            ) from error  # fmt: skip

    def count(self, split: Split) -> int:
        """How many conversations a split has."""
        return int(self._split(split).starts[-1])

    def source_ids(self, split: Split) -> npt.NDArray[np.int64]:
        """The place in `sources` of each conversation [N]."""
        column = self._split(split).column("source")
        known = pa.array(self.sources, pa.string())
        found = pc.index_in(column, known)
        return np.asarray(found.to_numpy(), np.int64)

    def read(self, split: Split, start: int = 0, stop: int | None = None) -> Iterator[Conversation]:
        """The conversations from `start` to before `stop`, in stored order."""
        rows = self._split(split)
        stop = self.count(split) if stop is None else min(stop, self.count(split))
        while start < stop:
            group = rows.group_of(start)
            first = int(rows.starts[group])
            last = min(stop, int(rows.starts[group + 1]))
            yield from rows.read_group(group)[start - first : last - first]
            start = last

    def at(self, split: Split, index: int) -> Conversation:
        """One conversation. Near ones are read together, so neighbours are quick.

        Raises:
            IndexError: the split has no such conversation.
        """
        if not 0 <= index < self.count(split):
            raise IndexError(f"{split} has {self.count(split):,} conversations, not {index:,}")
        return self._split(split).at(index)

    def _split(self, split: Split) -> _SplitReader:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}")
        if split not in self._splits:
            self._splits[split] = _SplitReader(self.path / f"{split}.parquet")
        return self._splits[split]


class _SplitReader:
    """One Parquet file, by row groups."""

    def __init__(self, path: Path):
        self._path = path
        with self._opened() as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._kept: OrderedDict[int, list[Conversation]] = OrderedDict()

    def _opened(self) -> AbstractContextManager[Any]:
        return open_parquet(SourceFile(self._path.name, self._path))

    def column(self, name: str) -> pa.ChunkedArray:
        with self._opened() as file:
            return file.read(columns=[name])[name]

    def group_of(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def at(self, index: int) -> Conversation:
        group = self.group_of(index)
        if group not in self._kept:
            self._kept[group] = self.read_group(group)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group][index - int(self.starts[group])]

    def read_group(self, group: int) -> list[Conversation]:
        with self._opened() as file:
            rows = file.read_row_group(group, columns=["source", "file", "row", "messages"])
        columns = [column.to_pylist() for column in rows.columns]
        return [
            Conversation(tuple(orjson.loads(said)), source, file, row)
            for source, file, row, said in zip(*columns, strict=True)
        ]
