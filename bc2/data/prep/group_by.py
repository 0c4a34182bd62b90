"""Group the rows of all parts by equal values, in this process; deduplication needs this.

Rows are grouped by sorting, a column at a time, which takes less time than starting a query engine.
On a Ray cluster, `bc2.data.prep.ray_engine` finds the same groups with a query, so that no process
holds all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

Int64 = npt.NDArray[np.int64]


class Groups(NamedTuple):
    """Groups of two or more rows; groups and their members are in no defined order."""

    members: Int64
    """`pos` of the rows, one group after the other."""
    ends: Int64
    """[groups + 1] where groups begin and end."""

    @classmethod
    def none(cls) -> Groups:
        """No groups."""
        return cls(np.zeros(0, np.int64), np.zeros(1, np.int64))

    @property
    def sizes(self) -> Int64:
        """[groups] the number of members of each."""
        return np.diff(self.ends)

    def firsts(self) -> Int64:
        """[members] for each member, the smallest `pos` of its group."""
        if not len(self.members):
            return self.members
        return np.repeat(np.minimum.reduceat(self.members, self.ends[:-1]), self.sizes)

    def later(self) -> Int64:
        """`pos` of all members but the first of each group, sorted."""
        return np.sort(self.members[self.members != self.firsts()])


def sorted_groups(paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
    """Groups of rows that are equal in all `columns` (int64), found by sorting.

    Memory: 24 bytes for each row; and 16 for each column of each row whose value in the first
    column occurs more than once.

    Args:
        paths: Parquet files with `pos` and the columns.
        without: `pos` of rows to leave out, sorted.
    """
    values = column(paths, columns[0])
    mine = _repeated(values)
    values = np.stack([values[mine], *(column(paths, name)[mine] for name in columns[1:])])
    pos = column(paths, "pos")[mine]
    kept = ~among(pos, without)
    pos, values = pos[kept], values[:, kept]
    order = np.lexsort(values)
    values = values[:, order]
    begins = np.ones(len(pos) + 1, bool)
    begins[1:-1] = (values[:, 1:] != values[:, :-1]).any(axis=0)
    alone = begins[:-1] & begins[1:]
    return Groups(pos[order][~alone], np.flatnonzero(begins[np.append(~alone, True)]))


def column(paths: Sequence[Path], name: str) -> Int64:
    """A column of Parquet files, one file after the other, in its own integer type."""
    found = [pq.ParquetFile(path).read([name])[name].to_numpy() for path in paths]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _repeated(values: Int64) -> npt.NDArray[np.bool_]:
    """[n] whether each of `values` [n] occurs more than once."""
    ordered = np.sort(values)
    return among(values, ordered[1:][ordered[1:] == ordered[:-1]])


def among(values: Int64, known: Int64) -> npt.NDArray[np.bool_]:
    """[n] whether each of `values` [n] is in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    same: npt.NDArray[np.bool_] = known[at] == values
    return same
