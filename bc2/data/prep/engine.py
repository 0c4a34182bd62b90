"""Engines work on parts: their interface, and the engine of processes on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bc2.data.prep.group_by import Groups, Int64, sorted_groups
from bc2.data.workers import in_order, worker_pool

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor


Item = TypeVar("Item")
Result = TypeVar("Result")


class PrepEngine(ABC):
    """Calls picklable functions on items in parallel, and groups rows."""

    @abstractmethod
    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Call a function on items, a few items ahead; results in the order of items."""

    @abstractmethod
    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        """Groups of rows that are equal in int64 columns of Parquet files.

        Args:
            without: `pos` of rows to leave out, sorted.
        """


class ProcessEngine(PrepEngine):
    """Processes of this machine, which start when `map` is first called.

    Args:
        workers: number of processes; with 1, everything runs in this process.
        held: stops the processes when it closes.
    """

    def __init__(self, workers: int, held: ExitStack):
        self.workers = workers
        self._held = held
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        if self.workers == 1:
            return map(function, items)
        if self._pool is None:
            todo = "run the same again with fewer --workers; finished parts are kept"
            self._pool = self._held.enter_context(worker_pool(self.workers, "preparing", todo))
        return in_order(self._pool, function, items, ahead=2 * self.workers)

    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        return sorted_groups(paths, columns, without)
