"""Files of the working set's parts, in Arrow's format, memory-mapped so that nothing is copied.

They are not compressed, because a part is read several times and is deleted after the run. While
the stages of a segment run, all text is on disk twice: before and after the segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: Suffix of the file of a part.
SUFFIX = ".arrow"


def write_part_file(table: pa.Table, path: Path) -> None:
    """Write a part, whose rows are in the order of `pos`."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_part_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all columns of a part, or those of `columns` that it has.

    The file may be deleted while the table is in use.
    """
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    if columns is None:
        return table
    return table.select([name for name in columns if name in table.schema.names])


def pos_range(path: Path) -> tuple[int, int] | None:
    """The first and the last `pos` of a part; None if it has no rows."""
    places = read_part_file(path, ["pos"])["pos"]
    return (places[0].as_py(), places[-1].as_py()) if len(places) else None


def write_keys(table: pa.Table, path: Path) -> None:
    """Write the keys of a part as Parquet, which Daft can read.

    The file is not compressed, because keys are mostly hashes.
    """
    pq.write_table(table, path, compression="none", use_dictionary=False)
