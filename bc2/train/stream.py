"""Where a loop's batches come from: the micro-batches of each step, from a sample index on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from bc2.data.loader import Ahead, Batch, total_weights
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
    def weights(self) -> dict[str, float]:
        """What losses and metrics may be divided by: tokens, samples, and the algorithm's own."""
        return total_weights(self.batches)

    @property
    def computed(self) -> int:
        """Tokens that go through the model, supervised or not, with padding."""
        return sum(batch.tokens.size for batch in self.batches)

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
