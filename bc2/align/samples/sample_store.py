"""Samples on disk: flat arrays that are memory mapped, written once, found again by their key.

Tokenising a large set takes longer than starting a run, and each rank of a machine, each resumed
run and the lint read the same samples. They are a cache: what is lost or damaged is made again.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from socket import gethostname
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bc2.align.samples.sample import Sample
from bc2.files import CHUNK, replace_durably, sync_file
from bc2.tokenizer.chat import IGNORED

_FACTS = "samples.json"


class BadRow(NamedTuple):
    """A conversation that cannot be trained on."""

    place: int
    """In the split."""
    code: str
    """The kind of fault, such as ``empty_answer``."""
    why: str


@dataclass
class SampleChunk:
    """The samples of some conversations in a row, while they are made."""

    samples: list[Sample] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    """Of each sample, the place of its conversation in the split."""
    cut: list[int] = field(default_factory=list)
    """Conversations of which only the first rounds are kept."""
    too_long: list[tuple[int, int]] = field(default_factory=list)
    """Conversations that do not fit into a row, and their tokens."""
    faults: list[BadRow] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write it as a file that is there whole or not at all."""
        aside = _aside(path)
        facts = {"cut": self.cut, "too_long": self.too_long, "faults": self.faults}
        with aside.open("wb") as file:
            np.savez(
                file,
                lengths=np.array([len(one.tokens) for one in self.samples], np.int32),
                tokens=_joined([one.tokens for one in self.samples], np.int32),
                labels=_joined([one.labels for one in self.samples], np.int32),
                weights=_joined([one.weights for one in self.samples], np.float32),
                index=np.array(self.index, np.int64),
                facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            )
        sync_file(aside)
        aside.replace(path)


def _aside(path: Path) -> Path:
    """Where a file is written first.

    What a killed process started may still write the same one, and so may another machine, where
    a shared file system locks for each machine alone.
    """
    return path.with_suffix(f".{gethostname()}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine began to write; none may be writing now."""
    for path in folder.glob(f"*.{gethostname()}.*.tmp"):
        path.unlink(missing_ok=True)


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])


@dataclass(frozen=True)
class Samples:
    """The samples of a split, in the order of its conversations. Shapes: N samples, T tokens."""

    lengths: npt.NDArray[np.int32]
    """[N] tokens of each."""
    trained: npt.NDArray[np.int32]
    """[N] labels of each."""
    index: npt.NDArray[np.int64]
    """[N], the place of its conversation in the split."""
    starts: npt.NDArray[np.int64]
    """[N + 1], where samples begin in the arrays below."""
    tokens: npt.NDArray[np.int32]
    """[T]"""
    labels: npt.NDArray[np.int32]
    """[T]"""
    weights: npt.NDArray[np.float32] | None
    """[T]; None where every label counts 1."""
    cut: tuple[int, ...]
    """Conversations of which only the first rounds are kept."""
    too_long: tuple[tuple[int, int], ...]
    """Conversations that do not fit into a row and are left out, and their tokens."""
    faults: tuple[BadRow, ...]
    """Conversations that cannot be trained on, which are left out."""
    crc32: Mapping[str, int] = field(default_factory=dict)
    """Of the files, by the names of the arrays: what ranks must have alike."""

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, number: int) -> Sample:
        """One sample."""
        part = slice(self.starts[number], self.starts[number + 1])
        labels = self.labels[part]
        weights = (labels != IGNORED).astype(np.float32)
        if self.weights is not None:
            weights = self.weights[part]
        return Sample(self.tokens[part], labels, weights)

    @property
    def fault_counts(self) -> dict[str, int]:
        """How many faults there are of each kind, most first."""
        return dict(Counter(fault.code for fault in self.faults).most_common())

    @classmethod
    def open(cls, folder: Path) -> Samples:
        """Samples that `merge` has written.

        All files are read once, so that a damaged disk does not change what is learnt.

        Raises:
            ValueError: `merge` has not finished there, or the files are not those it wrote.
        """
        try:
            facts = json.loads((folder / _FACTS).read_bytes())
            for name, crc in facts["crc32"].items():
                if _crc(_array(folder, name)) != crc:
                    raise ValueError(f"{name} of {folder} is damaged")
            return cls._of(folder, facts)
        except (OSError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} holds no samples: {error}") from error

    @classmethod
    def _of(cls, folder: Path, facts: dict[str, Any]) -> Samples:
        # An empty file cannot be mapped.
        mode: Literal["r"] | None = "r" if facts["tokens"] else None
        names = ("lengths", "trained", "index", "starts", "tokens", "labels")
        arrays = {name: np.load(_array(folder, name), mmap_mode=mode) for name in names}
        weights = np.load(_array(folder, "weights"), mmap_mode=mode) if facts["weighted"] else None
        return cls(
            **arrays,
            weights=weights,
            cut=tuple(facts["cut"]),
            too_long=tuple((index, length) for index, length in facts["too_long"]),
            faults=tuple(BadRow(*fault) for fault in facts["faults"]),
            crc32=facts["crc32"],
        )


def _array(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _crc(path: Path) -> int:
    """CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            found = zlib.crc32(part, found)
    return found


def is_whole_chunk(path: Path) -> bool:
    """Whether `SampleChunk.write` has written this, and every byte of it is still there."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile):
        return False


def merge(chunks: Sequence[Path], folder: Path) -> None:
    """Join chunks into the files of `Samples`; the last one written says that all are there."""
    facts: dict[str, Any] = {"cut": [], "too_long": [], "faults": [], "weighted": False}
    lengths, index, trained = [], [], []
    for path in chunks:
        with np.load(path) as chunk:
            labels = chunk["labels"]
            lengths.append(chunk["lengths"])
            index.append(chunk["index"])
            trained.append(_trained(labels, chunk["lengths"]))
            facts["weighted"] |= bool(np.any(chunk["weights"] != (labels != IGNORED)))
            found = json.loads(chunk["facts"].tobytes())
        for name in ("cut", "too_long", "faults"):
            facts[name] += found[name]
    every = _joined(lengths, np.int32)
    starts = np.concatenate([[0], np.cumsum(every, dtype=np.int64)])
    facts["tokens"] = count = int(starts[-1])
    written = {
        "lengths": _write(folder, "lengths", every.dtype, len(every), [every]),
        "trained": _write(folder, "trained", np.int32, len(every), trained),
        "index": _write(folder, "index", np.int64, len(every), index),
        "starts": _write(folder, "starts", np.int64, len(starts), [starts]),
        "tokens": _write(folder, "tokens", np.int32, count, _each(chunks, "tokens")),
        "labels": _write(folder, "labels", np.int32, count, _each(chunks, "labels")),
    }
    if facts["weighted"]:
        written["weights"] = _write(folder, "weights", np.float32, count, _each(chunks, "weights"))
    replace_durably(folder / _FACTS, json.dumps({**facts, "crc32": written}).encode())


def _each(chunks: Iterable[Path], name: str) -> Iterator[npt.NDArray[Any]]:
    for path in chunks:
        with np.load(path) as chunk:
            yield chunk[name]


def _trained(labels: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    before = np.concatenate([[0], np.cumsum(labels != IGNORED)])
    ends = np.cumsum(lengths)
    return np.asarray(before[ends] - before[ends - lengths], np.int32)


def _write(
    folder: Path, name: str, dtype: Any, count: int, parts: Iterable[npt.NDArray[Any]]
) -> int:
    """Write numbers into a file that `np.load` maps, without holding them all; its CRC-32.

    Not through a mapping: on a full disk that ends the process. And not over the file that is
    there, which other runs may have mapped.
    """
    aside, crc = _aside(_array(folder, name)), 0
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    with aside.open("wb") as file:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": descr, "fortran_order": False, "shape": (count,)}
        )
        for data in chain([header.getvalue()], (np.asarray(p, dtype).tobytes() for p in parts)):
            file.write(data)
            crc = zlib.crc32(data, crc)  # of what was meant, so that a bad write is seen
    sync_file(aside)
    aside.replace(_array(folder, name))
    return crc
