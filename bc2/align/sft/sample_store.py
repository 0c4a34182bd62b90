"""Samples on disk: flat arrays that are memory mapped, written once, found again by their key.

Tokenising a large set takes longer than starting a run, and each rank of a machine, each resumed
run and the lint read the same samples. They are a cache: what is lost is made again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bc2.align.sft.sample import Sample
from bc2.files import replace_durably
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
        aside = path.with_suffix(".tmp")
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
        aside.rename(path)


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
        """Samples that `merge` has written."""
        facts = json.loads((folder / _FACTS).read_text())
        names = ("lengths", "trained", "index", "starts", "tokens", "labels")
        # An empty file cannot be mapped.
        mode: Literal["r"] | None = "r" if facts["tokens"] else None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in names}
        weights = np.load(folder / "weights.npy", mmap_mode=mode) if facts["weighted"] else None
        return cls(
            **arrays,
            weights=weights,
            cut=tuple(facts["cut"]),
            too_long=tuple((index, length) for index, length in facts["too_long"]),
            faults=tuple(BadRow(*fault) for fault in facts["faults"]),
        )


def is_whole(folder: Path) -> bool:
    """Whether `merge` has finished there."""
    return (folder / _FACTS).exists()


def merge(chunks: Iterable[Path], folder: Path) -> None:
    """Join chunks into the files of `Samples`; the last one written says that all are there."""
    chunks = list(chunks)
    facts: dict[str, Any] = {"cut": [], "too_long": [], "faults": [], "weighted": False}
    lengths, index, trained = [], [], []
    with (folder / "tokens.raw").open("wb") as tokens, (folder / "labels.raw").open("wb") as labels:
        for path in chunks:
            with np.load(path) as chunk:
                tokens.write(chunk["tokens"].tobytes())
                labels.write(chunk["labels"].tobytes())
                lengths.append(chunk["lengths"])
                index.append(chunk["index"])
                trained.append(_trained(chunk["labels"], chunk["lengths"]))
                facts["weighted"] |= bool(np.any(chunk["weights"] != (chunk["labels"] != IGNORED)))
                found = json.loads(chunk["facts"].tobytes())
            for name in ("cut", "too_long", "faults"):
                facts[name] += found[name]
    every = _joined(lengths, np.int32)
    facts["tokens"] = int(every.sum(dtype=np.int64))
    np.save(folder / "lengths.npy", every)
    np.save(folder / "index.npy", _joined(index, np.int64))
    np.save(folder / "trained.npy", _joined(trained, np.int32))
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(every, dtype=np.int64)]))
    for name in ("tokens", "labels"):
        _as_npy(folder / f"{name}.raw", folder / f"{name}.npy", np.int32)
    if facts["weighted"]:
        _write_weights(chunks, folder)
    replace_durably(folder / _FACTS, json.dumps(facts).encode())


def _write_weights(chunks: Iterable[Path], folder: Path) -> None:
    with (folder / "weights.raw").open("wb") as file:
        for path in chunks:
            with np.load(path) as chunk:
                file.write(chunk["weights"].tobytes())
    _as_npy(folder / "weights.raw", folder / "weights.npy", np.float32)


def _trained(labels: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    before = np.concatenate([[0], np.cumsum(labels != IGNORED)])
    ends = np.cumsum(lengths)
    return np.asarray(before[ends] - before[ends - lengths], np.int32)


def _as_npy(raw: Path, path: Path, dtype: Any) -> None:
    """Copy a file of numbers into one that `np.load` maps, without holding it."""
    count = raw.stat().st_size // np.dtype(dtype).itemsize
    if not count:
        np.save(path, np.empty(0, dtype))
    else:
        made = np.lib.format.open_memmap(path, "w+", dtype, (count,))
        read = np.memmap(raw, dtype, "r")
        for start in range(0, count, 2**22):
            made[start : start + 2**22] = read[start : start + 2**22]
        made.flush()
    raw.unlink()
