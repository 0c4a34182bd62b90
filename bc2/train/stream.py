"""Where a loop's batches come from: steps of micro-batches, found by one integer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bc2.data.loader import Batch, Loader


@dataclass(frozen=True)
class Step:
    """The data of one optimizer step."""

    first: int
    """Global index of the first sample."""
    rows: int
    """Samples in the step: indices first to first + rows - 1."""
    batches: list[Batch]
    """Its micro-batches."""

    @property
    def labels(self) -> int:
        """Supervised tokens in the step."""
        return sum(batch.num_labels for batch in self.batches)


@dataclass(frozen=True)
class TokenStream:
    """Steps of packed token windows, read ahead on a thread."""

    loader: Loader
    rows: int
    """Samples in a step."""
    micro_batch: int
    """Samples in a micro-batch; divides `rows`."""

    @contextmanager
    def steps(self, first: int) -> Iterator[Iterator[Step]]:
        """The steps from global sample `first` on; reading stops with the block."""
        with self.loader.iterate(first, self.micro_batch) as batches:
            yield self._group(first, batches)

    def _group(self, first: int, batches: Iterator[Batch]) -> Iterator[Step]:
        while True:
            group = [next(batches) for _ in range(self.rows // self.micro_batch)]
            yield Step(first, self.rows, group)
            first += self.rows
