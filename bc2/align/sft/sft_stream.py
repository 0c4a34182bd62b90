"""The stream of fine-tuning: packed rows of samples, a pure function of seed and row.

Shapes: R rows of S tokens, N samples in them, D samples and stretches of padding.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bc2.align.sft.packing import Rows, pack_rows
from bc2.align.sft.sample import Sample
from bc2.align.sft.sample_store import Samples
from bc2.align.sft.sft_objective import WEIGHT
from bc2.data.loader import IGNORED, SAMPLE, Batch, read_ahead
from bc2.parallel.mesh import Mesh
from bc2.train.stream import BatchStream, StepData, with_timeout

if TYPE_CHECKING:
    from bc2.align.sft.sft_config import SftConfig

#: Micro-batches read ahead.
_AHEAD = 4


def make_batch(
    rows: Sequence[Sequence[Sample]],
    sequence_length: int,
    pad_id: int,
    *,
    source_ids: npt.NDArray[np.int64] | None = None,
    weighted: bool = False,
) -> Batch:
    """A micro-batch of packed rows; what is left of a row is padding, which attends to itself.

    Args:
        rows: the samples of each, together at most `sequence_length` tokens.
        source_ids: [R]; 0 if None.
        weighted: whether labels have weights of their own, as all batches of a run have or none.
    """
    shape = (len(rows), sequence_length)
    tokens = np.full(shape, pad_id, np.int64)
    labels, samples = np.full(shape, IGNORED, np.int64), np.full(shape, IGNORED, np.int64)
    weights = np.zeros(shape, np.float32)
    begins, number = [], 0
    for row, packed in enumerate(rows):
        at = 0
        for sample in packed:
            end = at + len(sample.tokens)
            tokens[row, at:end], labels[row, at:end] = sample.tokens, sample.labels
            weights[row, at:end], samples[row, at:end] = sample.weights, number
            begins.append(row * sequence_length + at)
            at, number = end, number + 1
        if at < sequence_length:
            begins.append(row * sequence_length + at)
    cu_seqlens = np.array([*begins, tokens.size], np.int32)
    return Batch(
        tokens=tokens,
        labels=labels,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(np.diff(cu_seqlens).max()),
        num_labels=int(np.count_nonzero(labels != IGNORED)),
        source_ids=np.zeros(len(rows), np.int64) if source_ids is None else source_ids,
        token_fields={SAMPLE: samples, **({WEIGHT: weights} if weighted else {})},
        packed_samples=number,
        extra_weights={WEIGHT: float(weights.sum(dtype=np.float64))},
    )


def example_batch(vocab_size: int, config: SftConfig, rows: int, rng: np.random.Generator) -> Batch:
    """Rows of one sample each, all of which is trained: what takes the most memory."""
    shape = (rows, config.sequence_length)
    tokens, labels = (rng.integers(0, vocab_size, shape, np.int32) for _ in range(2))
    weights = np.ones(shape, np.float32)
    samples = [[Sample(*row)] for row in zip(tokens, labels, weights, strict=True)]
    return make_batch(samples, config.sequence_length, 0, weighted=config.mean == "samples")


@dataclass(frozen=True)
class PackedSamples:
    """All rows of a run, by their number: those of the first epoch, of the second, and so on."""

    samples: Samples
    entries: npt.NDArray[np.int64]
    """The samples that an epoch reads, each as often as it does."""
    source_ids: npt.NDArray[np.int64]
    """Of each sample, its source."""
    sequence_length: int
    seed: int
    pad_id: int
    by_sample: bool = False
    """Whether the labels of a sample share one weight of 1, instead of having each their own."""
    _epochs: dict[int, Rows] = field(default_factory=dict, repr=False)
    """The rows of the epochs that are read now."""
    _starts: list[int] = field(default_factory=lambda: [0], repr=False)
    """The first row of each epoch, as far as they were asked for."""
    _lock: RLock = field(default_factory=RLock, repr=False, compare=False)
    """After a rollback the thread that read ahead may still be packing beside the new one."""

    @property
    def weighted(self) -> bool:
        """Whether labels do not all count 1."""
        return self.by_sample or self.samples.weights is not None

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
            lengths = self.samples.lengths[self.entries]
            known = pack_rows(lengths, self.sequence_length, self.seed, epoch)
            for old in [one for one in self._epochs if one < epoch - 1]:
                self._epochs.pop(old)
            self._epochs[epoch] = known
        return known

    def row(self, number: int) -> tuple[list[Sample], int]:
        """The samples of a row, and the source that most of its tokens are of."""
        with self._lock:
            while number >= self._starts[-1]:
                self.first_row(len(self._starts))
            epoch = bisect_right(self._starts, number) - 1
            places = self.entries[self._rows(epoch)[number - self._starts[epoch]]]
        samples = [self._sample(place) for place in places.tolist()]
        tokens = np.bincount(
            self.source_ids[places], weights=[len(sample.tokens) for sample in samples]
        )
        return samples, int(tokens.argmax())

    def _sample(self, place: int) -> Sample:
        sample = self.samples.sample(place)
        if not self.by_sample:
            return sample
        return Sample(sample.tokens, sample.labels, sample.weights / sample.weights.sum())

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Rows as a micro-batch; one of -1 has no samples, and is of no source."""
        rows = [self.row(number) if number >= 0 else ([], -1) for number in numbers]
        sources = np.array([source for _, source in rows], np.int64)
        return make_batch(
            [samples for samples, _ in rows], self.sequence_length, self.pad_id,
            source_ids=sources, weighted=self.weighted,
        )  # fmt: skip

    def filled(self) -> float:
        """The share of positions of the first epoch that are not padding."""
        tokens = int(self.samples.lengths[self.entries].sum(dtype=np.int64))
        return tokens / (self.first_row(1) * self.sequence_length)


@dataclass(frozen=True)
class SftStream(BatchStream):
    """Steps of packed rows, read ahead on a thread."""

    rows: PackedSamples
    sequences: int
    """Rows in a step."""
    total: int | None
    """Rows of the whole run, of which the last step has what is left; None: every step is full."""
    micro_batch: int
    """Rows in a micro-batch; with `ranks` it divides `sequences`."""
    timeout_s: float
    """No batch for this long: the reader is stuck."""
    check: Callable[[], None]
    """Called during a wait; if it raises, the wait ends."""
    names: tuple[str, ...]
    """Of the sources."""
    rank: int = 0
    """This rank's number among the data-parallel ranks."""
    ranks: int = 1
    """Data-parallel ranks. They take turns by micro-batch, so that a step has the same rows
    whatever their number."""

    @classmethod
    def of(
        cls, rows: PackedSamples, config: SftConfig, total: int | None, names: Sequence[str],
        mesh: Mesh, check: Callable[[], None],
    ) -> SftStream:  # fmt: skip
        """The steps of this rank of a run."""
        return cls(
            rows, config.batch_sequences, total, config.micro_sequences, config.data_timeout_s,
            check, tuple(names), mesh.data.rank, mesh.data.size,
        )  # fmt: skip

    @contextmanager
    def steps(self, first: int) -> Iterator[Iterator[StepData]]:
        """The steps from row `first` on; reading stops with the block."""
        with read_ahead(self._batches(first), _AHEAD) as ready:
            yield self._group(first, with_timeout(ready, self.timeout_s, self.check))

    def _count(self, first: int) -> int:
        """Rows of the step that begins with row `first`."""
        left = self.sequences if self.total is None else self.total - first
        # Beyond the end there is only what a rollback has left to be made up for.
        return min(self.sequences, left) if left > 0 else self.sequences

    def _turns(self, first: int) -> range:
        """Where this rank's micro-batches of a step begin: as many as every other rank has."""
        unit = self.micro_batch * self.ranks
        turns = -(-self._count(first) // unit)
        begin = first + self.rank * self.micro_batch
        return range(begin, begin + turns * unit, unit)

    def _batches(self, first: int) -> Iterator[Batch]:
        while True:
            end = first + self._count(first)
            for at in self._turns(first):
                numbers = range(at, at + self.micro_batch)
                yield self.rows.batch([n if n < end else -1 for n in numbers])
            first = end

    def _group(self, first: int, batches: Iterator[Batch]) -> Iterator[StepData]:
        while True:
            count = self._count(first)
            group = [next(batches) for _ in self._turns(first)]
            yield StepData(first, count, group, self.names)
            first += count
