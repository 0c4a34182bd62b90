"""Where parts are worked on: what an engine does, and the one of this machine's processes."""

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
    """Maps picklable functions over items, and groups rows."""

    @abstractmethod
    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of items, a few items ahead."""

    @abstractmethod
    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        """Rows of equal values in Parquet files."""


class ProcessEngine(PrepEngine):
    """Processes of this machine, started with the first work for them.

    Args:
        workers: processes; with one, everything runs in this one.
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
