"""Where parts are worked on: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import itertools
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow.parquet as pq

from bc2.data.prep.group_by import Groups, Int64, queried_groups, sorted_groups
from bc2.data.streams import first_line
from bc2.data.workers import cores, in_order, worker_pool
from bc2.errors import ResourceError, RunFailed, UsageError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor


EngineName = Literal["local", "ray"]

#: Seconds in which the head of a Ray cluster must accept a connection.
_KNOCK_S = 20

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(ABC):
    """Maps picklable functions over items, and groups rows."""

    @abstractmethod
    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of items, a few items ahead."""

    @abstractmethod
    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        """Rows of equal values in Parquet files."""


class LocalEngine(Engine):
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


class RayEngine(Engine):
    """Tasks of a Ray cluster; every node must see the work directory under the same path."""

    def __init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray", todo="pip install 'bc2[ray]'") from None
        if not ray.is_initialized():
            _join_cluster(ray, os.environ.get("RAY_ADDRESS", ""))
        import daft

        daft.set_runner_ray()
        self._ray = ray

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        task = self._ray.remote(function)
        nodes = self._ray.cluster_resources()  # type: ignore[no-untyped-call]
        ahead = 2 * max(1, int(nodes["CPU"]))
        waiting: deque[Any] = deque()
        items = iter(items)
        waiting.extend(task.remote(item) for item in itertools.islice(items, ahead))
        while waiting:
            yield self._result(waiting.popleft())
            waiting.extend(task.remote(item) for item in itertools.islice(items, 1))

    def _result(self, task: Any) -> Any:
        """Ray does a task of a lost node again elsewhere; this is of those it gave up."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.RayTaskError:  # what the function itself raised, and of that class too
            raise
        except errors.OutOfMemoryError as error:
            what, todo = (
                "a Ray worker ran out of memory",
                "give the nodes fewer CPUs, or more memory",
            )
            raise ResourceError(what, todo=f"{todo}; finished parts are kept") from error
        except errors.RayError as error:
            raise RunFailed(
                f"the Ray cluster lost a task: {first_line(error)}",
                todo="see that its nodes run, then run the same again; finished parts are kept",
            ) from error

    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        if not any(pq.read_metadata(path).num_rows for path in paths):
            return Groups.none()  # Daft has no query over no files
        import daft

        rows = daft.read_parquet([str(path) for path in paths])
        return queried_groups(rows, columns, without)


def _join_cluster(ray: Any, address: str) -> None:
    """RAY_ADDRESS names a cluster; without it a small one is started here."""
    try:
        _knock(address)
        # Queries inside a task are of its part alone.
        native = {"env_vars": {"DAFT_RUNNER": "native"}}
        # Named: Ray would rather join whatever cluster somebody runs on this machine.
        ray.init(
            address=address or "local",
            log_to_driver=False,
            include_dashboard=False,
            runtime_env=native,
        )
    except (OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}" if address else None
        todo = "check RAY_ADDRESS and that the cluster runs, or unset it to start one here"
        raise RunFailed(
            f"no Ray cluster can be reached: {first_line(error)}", where=where, todo=todo
        ) from error


def _knock(address: str) -> None:
    """See that somebody listens at HOST:PORT: Ray itself tries for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()


@contextmanager
def open_engine(name: EngineName, workers: int | None, text_bytes: int) -> Iterator[Engine]:
    """The engine by name, for as long as the context lasts.

    Args:
        workers: processes; if None one a core, but one alone for little text.
        text_bytes: about how much there is to do.
    """
    with ExitStack() as held:
        if name == "ray":
            yield RayEngine()
        else:
            yield LocalEngine(workers or _worth(text_bytes), held)


def _worth(text_bytes: int) -> int:
    """A process a core, but none for less text than takes as long as its start."""
    return min(cores(), 1 + text_bytes // (16 << 20))
