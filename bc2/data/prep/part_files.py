"""Parts of the working set on disk: Arrow's own format, mapped, so that reading copies nothing.

Not compressed, since a part is read several times and lives for one run: two copies of all text
are on disk while a segment goes from one to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: How the names of parts end.
SUFFIX = ".arrow"


def write_part_file(table: pa.Table, path: Path) -> None:
    """A part, in the order of `pos`."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_part_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A part, or the columns of it that are asked for and there; the file may then be unlinked."""
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
    """Keys of a part as Parquet, which queries read: mostly hashes, of which no two are alike."""
    pq.write_table(table, path, compression="none", use_dictionary=False)
