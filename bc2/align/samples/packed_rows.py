"""Rows of packed samples by their number: those of the first epoch, of the second, and so on.

What is packed is a unit: a sample, or several that must lie in one row, as the answers of a pair.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from threading import RLock

import numpy as np
import numpy.typing as npt

from bc2.align.samples.packing import Rows, pack_rows
from bc2.data.loader import Batch


@dataclass(frozen=True)
class PackedRows(ABC):
    """All rows of a run. Shapes: U units."""

    entries: npt.NDArray[np.int64]
    """The units that an epoch reads, each as often as it does."""
    source_ids: npt.NDArray[np.int64]
    """[U], the source of each."""
    sequence_length: int
    seed: int
    pad_id: int
    _epochs: dict[int, Rows] = field(default_factory=dict, repr=False, kw_only=True)
    """The rows of the epochs that are read now."""
    _starts: list[int] = field(default_factory=lambda: [0], repr=False, kw_only=True)
    """The first row of each epoch, as far as they were asked for."""
    _lock: RLock = field(default_factory=RLock, repr=False, compare=False, kw_only=True)
    """After a rollback the thread that read ahead may still be packing beside the new one."""

    @property
    @abstractmethod
    def unit_lengths(self) -> npt.NDArray[np.int32]:
        """[U], tokens of each."""

    @abstractmethod
    def batch(self, numbers: Sequence[int]) -> Batch:
        """Rows as a micro-batch; one of -1 has no samples, and is of no source."""

    def first_row(self, epoch: int) -> int:
        """The number of an epoch's first row."""
        with self._lock:
            while len(self._starts) <= epoch:
                self._starts.append(self._starts[-1] + len(self._rows(len(self._starts) - 1)))
            return self._starts[epoch]

    def total_rows(self, epochs: Decimal) -> int:
        """Rows of so many epochs; of a fraction, the first ones of its epoch."""
        whole = int(epochs)
        last = self.first_row(whole + 1) - self.first_row(whole) if epochs % 1 else 0
        return self.first_row(whole) + math.ceil(last * (epochs % 1))

    def _rows(self, epoch: int) -> Rows:
        known = self._epochs.get(epoch)
        if known is None:
            lengths = self.unit_lengths[self.entries]
            known = pack_rows(lengths, self.sequence_length, self.seed, epoch)
            for old in [one for one in self._epochs if one < epoch - 1]:
                self._epochs.pop(old)
            self._epochs[epoch] = known
        return known

    def units(self, number: int) -> npt.NDArray[np.int64]:
        """The units of a row; none of row -1."""
        if number < 0:
            return self.entries[:0]
        with self._lock:
            while number >= self._starts[-1]:
                self.first_row(len(self._starts))
            epoch = bisect_right(self._starts, number) - 1
            return self.entries[self._rows(epoch)[number - self._starts[epoch]]]

    def source_of(self, units: npt.NDArray[np.int64]) -> int:
        """The source that most tokens of a row are of; -1: it has none."""
        if not len(units):
            return -1
        tokens = np.bincount(self.source_ids[units], weights=self.unit_lengths[units])
        return int(tokens.argmax())

    def filled(self) -> float:
        """The share of positions of the first epoch that are not padding."""
        tokens = int(self.unit_lengths[self.entries].sum(dtype=np.int64))
        return tokens / (self.first_row(1) * self.sequence_length)
