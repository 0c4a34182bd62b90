"""Decide which documents stay, given buckets of documents that may be similar.

The pairs of documents in a bucket are candidates. Those that a stage verifies are joined into
connected components, and one document of each component stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bc2.data.prep.stages.base import DETAIL, Outcome, dropped, remaining

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

#: The most members of a bucket in which every pair is a candidate.
WHOLE = 64
#: In a larger bucket, each member is paired with so many first members of the bucket, and with so
#: many members just before it.
LEADERS, NEIGHBOURS = 16, 16

#: A document is worse than another if its quality is so much lower. Measured with the rules on
#: 1,200 English and Chinese texts: a footer changes the score by 0.00 to 0.02, quoting the whole
#: text behind ``>`` lowers it by 0.03 to 0.08 (one text in a hundred by 0.11), a seventh of garbage
#: by 0.11 to 0.14, and a lost letter in twenty by 0.15 to 0.25.
WORSE = 0.1


#: About how many candidate pairs are made at a time: 16 bytes each, and as many again on the way.
_PAIRS = 1 << 22


def candidate_pairs(members: Int64, ends: Int64) -> Iterator[tuple[Int64, Int64, int]]:
    """The results of `bucket_pairs`, which has the same arguments, for a few buckets at a time."""
    sizes = np.diff(ends)
    at_most = np.minimum(sizes * (sizes - 1) // 2, (LEADERS + NEIGHBOURS) * sizes)
    cuts = np.flatnonzero(np.diff(np.cumsum(at_most) // _PAIRS)) + 1
    for first, last in pairwise([0, *cuts.tolist(), len(sizes)]):
        mine = ends[first : last + 1]
        yield bucket_pairs(members[mine[0] : mine[-1]], mine - mine[0])


def bucket_pairs(members: Int64, ends: Int64) -> tuple[Int64, Int64, int]:
    """Candidate pairs of buckets: at most 32 for each member, whatever the size of its bucket.

    In a bucket of up to 64 members, every pair is a candidate. In a larger bucket, each member is
    paired with the first 16 members and with the 16 members before it. If all members are similar
    to one another, this still connects all of them. Two members that are similar only to each
    other are found if one of them is among the first 16, if they are at most 16 places apart, or
    if they share another band.

    Args:
        members: the members of buckets, one bucket after the other.
        ends: [buckets + 1] where buckets begin and end.

    Returns:
        first and second of each pair, first < second, unsorted and perhaps with repetitions; and
        the number of pairs in large buckets that are not candidates.
    """
    sizes = np.diff(ends)
    members = _sorted_within(members, sizes)
    firsts, seconds, passed = [members[:0]], [members[:0]], 0
    for size in np.unique(sizes[(sizes > 1) & (sizes <= WHOLE)]).tolist():
        square = members[ends[:-1][sizes == size][:, None] + np.arange(size)]
        one, two = np.triu_indices(size, 1)
        firsts.append(square[:, one].ravel())
        seconds.append(square[:, two].ravel())
    for at in np.flatnonzero(sizes > WHOLE).tolist():
        mine = members[ends[at] : ends[at + 1]]
        one, two = _sparse_pairs(len(mine))
        firsts.append(mine[one])
        seconds.append(mine[two])
        passed += len(mine) * (len(mine) - 1) // 2 - len(one)
    return np.concatenate(firsts), np.concatenate(seconds), passed


def _sorted_within(members: Int64, sizes: Int64) -> Int64:
    bucket = np.repeat(np.arange(len(sizes)), sizes)
    return members[np.lexsort((members, bucket))]


def _sparse_pairs(count: int) -> tuple[Int64, Int64]:
    """Pairs i < j of numbers below `count`: i below LEADERS, or j at most i + NEIGHBOURS."""
    places = np.arange(count)
    pairs = [(np.full(count - i - 1, i), places[i + 1 :]) for i in range(LEADERS)]
    pairs += [(places[LEADERS:-d], places[LEADERS + d :]) for d in range(1, NEIGHBOURS + 1)]
    return np.concatenate([i for i, _ in pairs]), np.concatenate([j for _, j in pairs])


def equal_groups(values: npt.NDArray[np.generic]) -> tuple[Int64, Int64]:
    """Group the indices of equal values.

    Returns:
        Indices of all groups of two or more equal values, one group after the other, ascending in
        each group; and where groups begin and end [groups + 1]. Memory: 24 bytes for each value.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    cuts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True][: len(values) + 1])
    sizes = np.diff(cuts)
    sizes = np.where(sizes > 1, sizes, 0)
    members = order[np.repeat(sizes > 0, np.diff(cuts))]
    return members, np.concatenate(([0], np.cumsum(sizes[sizes > 0])))


class PairSet:
    """Distinct pairs of numbers below `count`, which is at most 3e9.

    Memory: 8 bytes for each pair, and twice that while pairs are added.
    """

    def __init__(self, count: int):
        self._count = count
        self._codes = np.zeros(0, np.int64)

    def add(self, firsts: Int64, seconds: Int64) -> None:
        """Add pairs, given by their first and second numbers [pairs]."""
        codes = firsts * np.int64(self._count) + seconds
        self._codes = np.unique(np.concatenate((self._codes, codes)))

    def __len__(self) -> int:
        return len(self._codes)

    def both(self) -> tuple[Int64, Int64]:
        """The first and the second numbers of all pairs, sorted by the first, then the second."""
        first, second = np.divmod(self._codes, np.int64(max(self._count, 1)))
        return first, second


def connected_components(count: int, firsts: Int64, seconds: Int64) -> npt.NDArray[np.int32]:
    """The connected component of each node of an undirected graph, as its first node: [count].

    Each round joins every component to the first component that an edge connects it with. SciPy
    has such a function too, but for most corpora importing SciPy takes longer than this.

    Args:
        count: number of nodes.
        firsts, seconds: [edges] the nodes of each edge.
    """
    labels = np.arange(count, dtype=np.int32)
    one, two = labels[firsts], labels[seconds]
    while len(one):
        np.minimum.at(labels, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(labels, found := labels[labels]):
            labels = found
        one, two = labels[one], labels[two]
        apart = one != two
        one, two = one[apart], two[apart]
    return labels


def keepers(labels: npt.NDArray[np.int32], sizes: Int64, quality: Float32 | None) -> Int64:
    """For each node, the node of its component that stays: [count].

    It is the one with most text, since what the others say, it says too, and more; of equals the
    first. Nodes whose quality is `WORSE` or more below the component's best do not come into
    question. A NaN is below every quality.

    Args:
        labels: [count] from `connected_components`.
        sizes: [count] how much text each node has of its own, each thing that it says once.
        quality: [count] from 0 to 1, or None.
    """
    worse = np.zeros(len(labels), bool)
    if quality is not None:
        known = np.nan_to_num(quality, nan=-1.0).astype(np.float64)
        best = np.full(int(labels.max(initial=-1)) + 1, -1.0)
        np.maximum.at(best, labels, known)
        worse = best[labels] - known >= WORSE
    order = np.lexsort((np.arange(len(labels)), -sizes, worse, labels))
    first = np.zeros(int(labels.max(initial=-1)) + 1, np.int64)
    ordered = labels[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
    first[ordered[starts]] = order[starts]
    return first[labels]


# -- dropped documents ---------------------------------------------------------------------


def survivor_detail(file: str, row: int, measure: str) -> str:
    """The detail of a dropped document: which document stays, and how similar the two are.

    A file name that is too long is shortened at its beginning.

    Args:
        measure: the similarity, such as "jaccard 0.93".
    """
    end = f":{row} {measure}"
    return f"of {file[len(end) + 3 - DETAIL :]}{end}"


def drop_decided(table: pa.Table, verdict: pa.Table, reason: str) -> Outcome:
    """Drop the documents of a part that a verdict names.

    Args:
        verdict: `pos` and `detail`, in the order of `pos`.
    """
    gone = pc.is_in(table["pos"], value_set=verdict["pos"])
    removed = dropped(table, gone, reason)
    at = removed.schema.get_field_index("detail")
    removed = removed.set_column(at, removed.schema.field(at), verdict["detail"])
    return Outcome(remaining(table, gone), removed)
