"""Where a loop's batches come from: the micro-batches of each step, from a sample index on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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
    further_flops: float = 0.0
    """Model FLOPs that the stream spent on these batches, such as the forward passes that wrote
    their text (`bc2.train.speed.step_flops.forward_flops`): they count in MFU as the step's own
    do, and once for ranks that share their samples."""

    @property
    def weights(self) -> dict[str, float]:
        """What losses and metrics may be divided by: tokens, samples, and the algorithm's own."""
        return total_weights(self.batches)

    @property
    def computed(self) -> int:
        """Tokens that go through the model, supervised or not, with padding."""
        return sum(batch.tokens.size for batch in self.batches)

    @property
    def pairs(self) -> int:
        """Pairs of a token and one of its row, which is what attention computes with padding."""
        return sum(batch.tokens.size * batch.tokens.shape[1] for batch in self.batches)

    @property
    def sources(self) -> dict[str, int]:
        """How many of its samples each source gave, most first."""
        if not self.names:
            return {}
        ids = np.concatenate([batch.source_ids for batch in self.batches])
        counts = Counter(self.names[number] for number in ids if number >= 0)
        return dict(counts.most_common())


@dataclass(frozen=True)
class StreamState:
    """What a stream must know beside a sample index to go on: a part of every checkpoint."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """JSON data."""
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class BatchStream(ABC):
    """Steps of any kind of data, from a global sample index on."""

    sequences: int
    """Samples in a step."""

    @abstractmethod
    def steps(self, first: int) -> AbstractContextManager[Iterator[StepData]]:
        """The steps from global sample `first` on, without end; reading stops with the block."""

    def state(self) -> StreamState | None:
        """What it knows after the step that it gave last, the same on every rank.

        Asked for after every step, so it must cost little: what is returned is not copied, and
        must not change any more. None: the sample index says everything.
        """
        return None

    def restore(self, state: StreamState | None) -> None:  # noqa: B027 most have no state
        """Go back to a state, before `steps` is called anew. None: there was none.

        After a rollback `steps` begins at a later sample than the state's: what would have been
        drawn between is left out, or a bad step would come again.
        """


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
        "data_timeout_s of the recipe says how long to wait",
    )
