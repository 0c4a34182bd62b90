"""The stream of pretraining: packed windows of token shards, read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bc2.data.loader import Batch, Loader
from bc2.parallel.mesh import Mesh
from bc2.train.pretrain.token_inputs import TokenInputs
from bc2.train.run_config import RunConfig
from bc2.train.stream import BatchStream, StepData, with_timeout


@dataclass(frozen=True)
class TokenStream(BatchStream):
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

    @classmethod
    def of(
        cls, config: RunConfig, data: TokenInputs, mesh: Mesh, check: Callable[[], None]
    ) -> TokenStream:
        """The steps of this rank of a run."""
        shards = data.shards
        return cls(
            Loader(shards, "train", data.mixture, config.sequence_length, shards.eos_id),
            config.batch_sequences,
            config.micro_sequences,
            timeout_s=config.data_timeout_s,
            check=check,
            rank=mesh.data.rank,
            ranks=mesh.data.size,
        )

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
