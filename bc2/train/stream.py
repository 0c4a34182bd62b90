"""Where a loop's batches come from: the micro-batches of each step, from a sample index on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from bc2.data.loader import Ahead, Batch, Loader
from bc2.errors import RunFailed

#: Seconds between two looks, during a wait for data, whether to stop waiting.
_POLL_S = 0.2


class StepSpan(NamedTuple):
    """A step and its samples, as error messages name them."""

    step: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"step {self.step}, samples {self.first} to {self.last}"


@dataclass(frozen=True)
class StepData:
    """The data of one optimizer step that this rank reads."""

    first: int
    """Global index of the first sample."""
    sequences: int
    """Samples in the step, on all ranks: indices first to first + sequences - 1."""
    batches: list[Batch]
    """This rank's micro-batches."""
    names: tuple[str, ...] = ()
    """Names of the sources, by `Batch.source_ids`."""

    @property
    def labels(self) -> int:
        """Supervised tokens in the step."""
        return sum(batch.num_labels for batch in self.batches)

    @property
    def sources(self) -> dict[str, int]:
        """How many of its samples each source gave, most first."""
        ids = np.concatenate([batch.source_ids for batch in self.batches])
        counts = Counter(self.names[number] for number in ids)
        return dict(counts.most_common())


class BatchStream(Protocol):
    """Steps of any kind of data, from a global sample index on."""

    @property
    def sequences(self) -> int:
        """Samples in a step."""

    def steps(self, first: int) -> AbstractContextManager[Iterator[StepData]]: ...


@dataclass(frozen=True)
class TokenStream:
    """Steps of packed token windows, read ahead on a thread."""

    loader: Loader
    sequences: int
    """Samples in a step."""
    micro_batch: int
    """Samples in a micro-batch; with `ranks` it divides `sequences`."""
    timeout_s: float
    """No batch for this long: the reader is stuck."""
    check: Callable[[], None]
    """Called during a wait; if it raises, the wait ends."""
    rank: int = 0
    """This rank's number among the data-parallel ranks."""
    ranks: int = 1
    """Data-parallel ranks. They take turns by micro-batch, so that a step has the same samples
    whatever their number."""

    @contextmanager
    def steps(self, first: int) -> Iterator[Iterator[StepData]]:
        """The steps from global sample `first` on; reading stops with the block."""
        begin, stride = first + self.rank * self.micro_batch, self.ranks * self.micro_batch
        with self.loader.iterate(begin, self.micro_batch, stride=stride) as batches:
            yield self._group(first, with_timeout(batches, self.timeout_s, self.check))

    def _group(self, first: int, batches: Iterator[Batch]) -> Iterator[StepData]:
        names = tuple(self.loader.mixture.sources)
        while True:
            count = self.sequences // (self.micro_batch * self.ranks)
            group = [next(batches) for _ in range(count)]
            yield StepData(first, self.sequences, group, names)
            first += self.sequences


def with_timeout(batches: Ahead, timeout_s: float, check: Callable[[], None]) -> Iterator[Batch]:
    """The batches, with a limit on the wait for each.

    Args:
        timeout_s: the longest wait for one batch.
        check: called before each batch and during a wait; if it raises, the wait ends.

    Raises:
        RunFailed: no batch came for `timeout_s` seconds.
    """
    while True:
        began = time.monotonic()
        while True:
            check()
            left = began + timeout_s - time.monotonic()
            try:
                batch = batches.take(max(0.0, min(left, _POLL_S)))
                break
            except StopIteration:
                return
            except TimeoutError:
                if left <= 0:
                    raise _stuck(timeout_s) from None
        yield batch


def _stuck(timeout_s: float) -> RunFailed:
    return RunFailed(
        f"no data for {timeout_s:g} s: reading the token shards is stuck",
        todo="look at the disk or the network they are on, and run the same again; "
        "pretrain.data_timeout_s says how long to wait",
    )
