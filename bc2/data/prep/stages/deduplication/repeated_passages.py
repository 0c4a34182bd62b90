"""Find the passages that occur several times in the corpus: first their hashes, then their places.

Hashes are divided into classes by their lowest bits. A worker handles one class: it reads the
hashes of all parts and keeps those of its class. So no process holds all hashes of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bc2.data.prep.group_by import Int64, among
from bc2.data.prep.stages.base import WorkingSet

#: A row for each passage. Texts have fewer than 2^31 characters.
PASSAGES = pa.schema(
    [
        pa.field("pos", pa.int64()),
        pa.field("hash", pa.int64()),  # of the kind and the compared form
        pa.field("kind", pa.int8()),  # a paragraph or a sentence
        pa.field("index", pa.int32()),  # among the document's paragraphs or sentences
        pa.field("inside", pa.int32()),  # index of the paragraph that it is, or is in
        pa.field("characters", pa.int32()),
        pa.field("bytes", pa.int32()),  # UTF-8
        pa.field("all_characters", pa.int32()),  # of the document
        pa.field("all_bytes", pa.int32()),
    ]
)

#: About how many passages a class has; limits how many hashes a worker sorts.
_CLASS = 1 << 23

#: The most classes: the hashes of the whole corpus are read once for each class.
_CLASSES = 64


def repeated(work: WorkingSet, least: Mapping[int, int]) -> list[Path]:
    """Find the passages that occur often enough.

    Memory: in each worker 16 bytes for each passage of a class, and in this process 8 bytes for
    each hash that is found.

    Args:
        work: its keys are tables of `PASSAGES`.
        least: kind -> how often a passage of this kind must occur.

    Returns:
        Parquet files of `PASSAGES` in the folder of `work`, one for each part.
    """
    paths = [work.keys(name) for name in work.parts]
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    bits = min(_CLASSES.bit_length() - 1, max(0, (total - 1) // _CLASS).bit_length())
    for kind, times in least.items():
        classes = [_Class(paths, kind, times, bits, number) for number in range(1 << bits)]
        found = np.sort(np.concatenate(list(work.map(_often, classes))))
        np.save(_hashes(work.folder, kind), found)
    tasks = [_Part(work.keys(name), work.folder, name, tuple(least)) for name in work.parts]
    return list(work.map(_rows, tasks))


class _Class(NamedTuple):
    paths: list[Path]
    kind: int
    least: int
    bits: int
    number: int
    """The value of the lowest `bits` bits of its hashes."""


def _often(mine: _Class) -> Int64:
    """Hashes of a class that occur at least `least` times, sorted."""
    hashes = np.concatenate([np.zeros(0, np.int64), *(_part(path, mine) for path in mine.paths)])
    hashes.sort()
    last = hashes[mine.least - 1 :]
    found: Int64 = np.unique(last[last == hashes[: len(last)]])
    return found


def _part(path: Path, mine: _Class) -> Int64:
    """The hashes of a class in one part."""
    hashes, kinds = _columns(path)
    own = (kinds == mine.kind) & (hashes & ((1 << mine.bits) - 1) == mine.number)
    found: Int64 = hashes[own]
    return found


class _Part(NamedTuple):
    keys: Path
    folder: Path
    name: str
    kinds: tuple[int, ...]


def _rows(part: _Part) -> Path:
    """Write the rows of a part whose hashes occur often enough; returns the file."""
    hashes, kinds = _columns(part.keys)
    mask = np.zeros(len(hashes), bool)
    for kind in part.kinds:
        known = np.load(_hashes(part.folder, kind), mmap_mode="r")
        mask |= (kinds == kind) & among(hashes, known)
    whole = pq.read_table(part.keys, schema=PASSAGES) if mask.any() else PASSAGES.empty_table()
    out = part.folder / f"repeated-{part.name}.parquet"
    pq.write_table(whole.filter(pa.array(mask)) if len(whole) else whole, out)
    return out


def _columns(path: Path) -> tuple[Int64, npt.NDArray[np.int8]]:
    table = pq.read_table(path, columns=["hash", "kind"])
    return table["hash"].to_numpy(), table["kind"].to_numpy()


def _hashes(folder: Path, kind: int) -> Path:
    return folder / f"repeated-{kind}.npy"
