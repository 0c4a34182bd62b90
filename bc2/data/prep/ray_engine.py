"""An engine of Ray tasks that work on parts and Daft queries that group rows: the `ray` extra.

No other module imports `ray` or `daft`.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.prep.engine import Item, PrepEngine, Result
from bc2.data.prep.group_by import Groups, Int64
from bc2.errors import ResourceError, RunFailed, UsageError
from bc2.process import signals
from bc2.streams import first_line

if TYPE_CHECKING:
    import daft

#: Seconds in which the head of a Ray cluster must accept a connection.
_CONNECT_S = 20


class RayEngine(PrepEngine):
    """Runs tasks on a Ray cluster; every node must have the work directory under the same path.

    Raises:
        UsageError: Ray or Daft is not installed.
        RunFailed: no cluster can be reached.
    """

    def __init__(self) -> None:
        for module, library in (("ray", "Ray"), ("daft", "Daft")):
            if find_spec(module) is None:
                what = f"--engine ray needs {library}, which is not installed"
                raise UsageError(what, todo="pip install 'bc2[ray]'")
        import ray

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
        """Wait for a task. Ray repeats tasks of a lost node on other nodes.

        Raises:
            ResourceError: a worker ran out of memory.
            RunFailed: Ray could not finish the task.
            Exception: what the function raised.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.RayTaskError:  # it also has the class of what the function itself raised
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
                todo="check that its nodes run, then run the same again; finished parts are kept",
            ) from error

    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        if not any(pq.read_metadata(path).num_rows for path in paths):
            return Groups.none()  # without rows there is nothing for Daft to query
        import daft

        rows = daft.read_parquet([str(path) for path in paths])
        return queried_groups(rows, columns, without)


def _join_cluster(ray: Any, address: str) -> None:
    """Join the cluster of RAY_ADDRESS; without an address, start a cluster on this machine.

    Raises:
        RunFailed: it cannot be reached.
    """
    try:
        _check_listening(address)
        # A query inside of a task reads only one part, so it runs in the task's own process.
        native = {"env_vars": {"DAFT_RUNNER": "native"}}
        # Without "local", Ray would join any cluster that runs on this machine.
        ray.init(
            address=address or "local",
            log_to_driver=False,
            include_dashboard=False,
            runtime_env=native,
        )
        if signals.armed():
            signals.install()  # Ray's own handler would end with 15
    except (OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}" if address else None
        todo = "check RAY_ADDRESS and that the cluster runs, or unset it to start one here"
        raise RunFailed(
            f"no Ray cluster can be reached: {first_line(error)}", where=where, todo=todo
        ) from error


def _check_listening(address: str) -> None:
    """Check that HOST:PORT accepts connections, because Ray itself would try for minutes.

    Raises:
        OSError: it does not.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


def queried_groups(rows: daft.DataFrame, columns: Sequence[str], without: Int64) -> Groups:
    """Groups of rows that are equal in all `columns` (int64), found by a query.

    Args:
        rows: `pos` and the columns.
        without: `pos` of rows to leave out, sorted.
    """
    import daft
    from daft import col, lit

    if len(without):
        rows = rows.join(daft.from_pydict({"pos": without}), on="pos", how="anti")
    pos = col("pos")
    groups = rows.groupby(*columns).agg(pos.list_agg().alias("all"), pos.count().alias("size"))
    members = groups.where(col("size") > lit(1)).select("all").to_arrow()["all"]
    sizes = pc.list_value_length(members).to_numpy().astype(np.int64)
    flat = pc.list_flatten(members).cast(pa.int64())
    return Groups(flat.to_numpy(), np.concatenate(([0], np.cumsum(sizes))))
