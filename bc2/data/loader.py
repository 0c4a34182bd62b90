"""Token shards to batches: packed rows, labels that stay inside documents, boundaries.

Shapes: R rows, S tokens a row, D documents or pieces of them in a batch, N samples (as a rule R).
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.data.mixture import Mixture
from bc2.data.shards import TokenShards

#: The label of a position that predicts nothing, as in torch's cross-entropy.
IGNORED = -100

#: The token field that says which sample a token is of: 0 to N - 1, or -100 for none (padding).
SAMPLE = "sample"

#: How long leaving waits for a read that is going on, seconds.
_JOIN_S = 2.0


@dataclass(frozen=True)
class Batch:
    """Packed rows.

    Where ranks share its tokens, each one's objective is given a `bc2.parallel.own_batch.OwnBatch`.

    Attributes:
        tokens: [R, S] int64.
        labels: [R, S] int64, what each position is to say: any id of the vocabulary, or -100 for
            nothing. `pack` has the next token there; another algorithm may have another one.
        cu_seqlens: [D + 1] int32, where documents begin in the flattened tokens, and R * S.
        max_seqlen: tokens of the longest of them.
        num_labels: labels that are not -100, of all ranks that share the tokens.
        source_ids: [R] int64, the source of each row: into `Mixture.sources` for training,
            into ``shards.sources("heldout")`` for held-out batches; -1: of none.
        token_fields: what else an algorithm says of each token, by name; shaped as the labels.
        sample_fields: what it says of each sample, by name: [N, ...].
        packed_samples: N, where rows hold several samples; then the token field `SAMPLE` says
            which one each token is of. None: each row is a sample.
        extra_weights: what losses and metrics may be divided by beside tokens and samples, such as
            ``{"pairs": 4}``. Every batch of an algorithm has the same names.

    Raises:
        ValueError: shapes or names do not fit together.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int
    num_labels: int
    source_ids: npt.NDArray[np.int64]
    token_fields: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    sample_fields: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    packed_samples: int | None = None
    extra_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.token_fields.items():
            if values.shape != self.labels.shape:
                shapes = f"{values.shape}, and labels {self.labels.shape}"
                raise ValueError(f"token field {name!r} has the shape {shapes}")
        for name, values in self.sample_fields.items():
            if values.shape[:1] != (self.num_samples,):
                count = f"{self.num_samples} samples"
                raise ValueError(f"sample field {name!r} has the shape {values.shape}, for {count}")
        if self.packed_samples is not None and SAMPLE not in self.token_fields:
            raise ValueError(f"samples are packed, but there is no token field {SAMPLE!r}")
        ids = self.token_fields.get(SAMPLE, self.labels[:0])
        if not np.all((ids == IGNORED) | ((ids >= 0) & (ids < self.num_samples))):
            raise ValueError(f"token field {SAMPLE!r} has an id that is none of its samples")
        if taken := {"tokens", "samples"} & self.extra_weights.keys():
            raise ValueError(f"an extra weight may not be called {', '.join(sorted(taken))}")

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.tokens) if self.packed_samples is None else self.packed_samples

    @property
    def weights(self) -> dict[str, float]:
        """What sums over this batch may be divided by."""
        return {"tokens": self.num_labels, "samples": self.num_samples, **self.extra_weights}


def total_weights(batches: Iterable[Batch]) -> dict[str, float]:
    """The sums of the weights of one or more batches.

    Raises:
        ValueError: not all have the same names, so that ranks could not sum them together.
    """
    each = [batch.weights for batch in batches]
    names = list(each[0])
    if other := next((weights for weights in each if weights.keys() != each[0].keys()), None):
        raise ValueError(f"batches of a step have other weights: {names} and {list(other)}")
    return {name: sum(weights[name] for weights in each) for name in names}


def pack(rows: npt.NDArray[np.int64], source_ids: npt.NDArray[np.int64], eos_id: int) -> Batch:
    """A batch of windows.

    Args:
        rows: [R, S + 1] tokens and the one after; -100 after the end of the text.
        source_ids: [R].

    Returns:
        Its labels are the next tokens; -100 where the token is EOS, since what follows belongs to
        another document, and in padding. Documents begin at row starts and after every EOS.
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
