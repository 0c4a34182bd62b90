"""The stream of packed rows: steps of so many rows, shared by the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from bc2.align.samples.packed_rows import PackedRows
from bc2.data.loader import Batch, read_ahead
from bc2.errors import RecipeError
from bc2.parallel.mesh import Mesh
from bc2.train.duration import Duration
from bc2.train.run_config import TokenBatchConfig
from bc2.train.stream import BatchStream, StepData, with_timeout

#: Micro-batches read ahead.
_AHEAD = 4

#: The most epochs: each is packed anew, which takes a second a million units.
_MOST_EPOCHS = 10_000


def total_rows(config: TokenBatchConfig, rows: PackedRows) -> int | None:
    """The rows of a run whose length is in epochs; None: it is not.

    Raises:
        RecipeError: it has more epochs than can be packed.
    """
    length = Duration.parse(config.length)
    if length.unit != "epochs":
        return None
    if length.amount > _MOST_EPOCHS:
        raise RecipeError(
            f"length = {config.length!r}: {_MOST_EPOCHS:,} epochs are the most",
            where=f"{config.section}.length",
            todo='write fewer, or the length as "N steps"',
        )
    return rows.total_rows(length.amount)


@dataclass(frozen=True)
class RowStream(BatchStream):
    """Steps of packed rows, read ahead on a thread: a pure function of seed and row."""

    rows: PackedRows
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
        cls, rows: PackedRows, config: TokenBatchConfig, total: int | None, names: Sequence[str],
        mesh: Mesh, check: Callable[[], None],
    ) -> Self:  # fmt: skip
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
