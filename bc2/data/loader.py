"""Token shards to batches: packed rows, labels that stay inside documents, boundaries.

Shapes: R rows (samples), S tokens a row, D documents or pieces of them in a batch.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bc2.data.mixture import Mixture
from bc2.data.shards import TokenShards

#: The label of a position that predicts nothing, as in torch's cross-entropy.
IGNORED = -100

#: How long leaving waits for a read that is going on, seconds.
_JOIN_S = 2.0


@dataclass(frozen=True)
class Batch:
    """Packed rows.

    Attributes:
        tokens: [R, S] int64.
        labels: [R, S] int64, the next token; -100 where the token is EOS, since what
            follows belongs to another document, and in padding.
        cu_seqlens: [D + 1] int32, where documents begin in the flattened tokens, and R * S:
            at row starts and after every EOS.
        max_seqlen: tokens of the longest of them.
        num_labels: labels that are not -100.
        source_ids: [R] int64, the source of each row: into `Mixture.sources` for training,
            into ``shards.sources("heldout")`` for held-out batches.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int
    num_labels: int
    source_ids: npt.NDArray[np.int64]


def pack(rows: npt.NDArray[np.int64], source_ids: npt.NDArray[np.int64], eos_id: int) -> Batch:
    """A batch of windows.

    Args:
        rows: [R, S + 1] tokens and the one after; -100 after the end of the text.
        source_ids: [R].
    """
    inputs, labels = rows[:, :-1], rows[:, 1:].copy()
    tokens = np.where(inputs == IGNORED, eos_id, inputs)
    labels[tokens == eos_id] = IGNORED
    begins = np.zeros(tokens.shape, dtype=bool)
    begins[:, 1:] = tokens[:, :-1] == eos_id
    begins[:, 0] = True
    cu_seqlens = np.append(np.flatnonzero(begins), tokens.size).astype(np.int32)
    return Batch(
        tokens=np.ascontiguousarray(tokens),
        labels=labels,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(np.diff(cu_seqlens).max()),
        num_labels=int(np.count_nonzero(labels != IGNORED)),
        source_ids=source_ids,
    )


@dataclass(frozen=True)
class Loader:
    """Samples of a split in the mixture's order. It has no state: a batch is named by its index.

    A sample is `sequence_length` + 1 tokens of one source at a multiple of
    `sequence_length`, so an epoch predicts each token once. What is left at the end of a
    source, shorter than a sample, is never used: see `left_out`.
    """

    shards: TokenShards
    split: str
    mixture: Mixture
    sequence_length: int
    eos_id: int

    def left_out(self) -> dict[str, int]:
        """Labels at the end of each source that are in no sample."""
        return {
            source: self.shards.num_tokens(self.split, source)
            - 1
            - self.mixture.windows[source] * self.sequence_length
            for source in self.mixture.sources
        }

    def batch(self, first: int, count: int) -> Batch:
        """Samples first to first + count - 1."""
        indices = np.arange(first, first + count, dtype=np.int64)
        source_ids, windows, _ = self.mixture.locate(indices)
        length = self.sequence_length
        rows = np.empty((count, length + 1), dtype=np.int64)
        for row, (source_id, window) in enumerate(zip(source_ids, windows, strict=True)):
            source = self.mixture.sources[source_id]
            start = int(window) * length
            rows[row] = self.shards.window(self.split, source, start, length + 1)
        return pack(rows, source_ids, self.eos_id)

    @contextmanager
    def iterate(
        self, first: int, count: int, *, stride: int | None = None, ahead: int = 4
    ) -> Iterator[Ahead]:
        """Batches of `count` samples from `first` on, without end, read ahead on a thread.

        Args:
            stride: samples from one batch's first to the next's; `count` if None. Rank r of
                W reads with first = r * count and stride = W * count.
            ahead: batches kept ready.
        """
        step = count if stride is None else stride
        batches = (self.batch(index, count) for index in itertools.count(first, step))
        with read_ahead(batches, ahead) as ready:
            yield ready


class Ahead:
    """Batches that a thread reads ahead, in order; what it raises is raised here in turn."""

    def __init__(self, batches: Iterator[Batch], ahead: int):
        self._batches = batches
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        # A daemon: a thread that is stuck in a read must not keep the process from ending.
        self._thread = threading.Thread(target=self._read, name="bc2-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead:
        return self

    def __next__(self) -> Batch:
        return self.take()

    def take(self, timeout_s: float | None = None) -> Batch:
        """The next batch.

        Raises:
            StopIteration: there are no more.
            TimeoutError: there was none for `timeout_s` seconds; it can be tried again.
        """
        try:
            item = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(item, BaseException):
            raise item
        return item

    def ready(self) -> int:
        """Batches that could be taken without waiting."""
        return self._ready.qsize()

    def close(self) -> None:
        """Stop reading. A thread that is stuck in a read is left behind."""
        self._stop.set()
        self._thread.join(_JOIN_S)

    def _read(self) -> None:
        try:
            while not self._stop.is_set():
                self._put(next(self._batches))
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


@contextmanager
def read_ahead(batches: Iterator[Batch], ahead: int) -> Iterator[Ahead]:
    """Batches computed up to `ahead` in advance on one thread, which ends with the block."""
    ready = Ahead(batches, ahead)
    try:
        yield ready
    finally:
        ready.close()


def heldout_batches(
    shards: TokenShards, sequence_length: int, rows: int, *, most: int | None = None
) -> Iterator[Batch]:
    """The held-out split once through, `rows` windows a batch (fewer in the last).

    Each label comes once; the last window of a source is padded with label -100. Windows of
    the sources are interleaved evenly, so that a reader who stops early has seen of each its
    share; `Batch.source_ids` tells them apart.

    Args:
        most: stop after this many windows, however they are batched.
    """
    sources = shards.sources("heldout")
    counts = [-(-(shards.num_tokens("heldout", s) - 1) // sequence_length) for s in sources]
    source_ids = np.repeat(np.arange(len(sources)), counts)
    windows = np.concatenate([np.arange(n) for n in [0, *counts]])
    places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n] or [np.empty(0)])
    order = np.argsort(places, kind="stable")[:most]
    for begin in range(0, len(order), rows):
        chosen = order[begin : begin + rows]
        batch = np.full((len(chosen), sequence_length + 1), IGNORED, dtype=np.int64)
        for row, at in enumerate(chosen):
            source = sources[source_ids[at]]
            start = int(windows[at]) * sequence_length
            length = min(sequence_length + 1, shards.num_tokens("heldout", source) - start)
            batch[row, :length] = shards.window("heldout", source, start, length)
        yield pack(batch, source_ids[chosen], shards.eos_id)
