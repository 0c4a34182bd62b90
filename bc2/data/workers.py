"""Worker processes for work that goes part by part.

They end with their parent, which alone follows signals: none reaches a worker.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from bc2.errors import ResourceError
from bc2.process.cores import usable_cores
from bc2.process.signals import shielded

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How long a worker may take to leave its part in order, seconds.
_GIVE_UP_S = 1.0


@contextmanager
def worker_pool(
    count: int, doing: str, todo: str, begin: Callable[..., None] | None = None, *given: Any
) -> Iterator[ProcessPoolExecutor]:
    """Processes for as long as the context lasts.

    Args:
        count: how many, at least one.
        doing: what they do, for the message when one of them dies.
        todo: what a person can do then.
        begin: called in each with `given` and then an event that is set when the parent gives up;
            what goes on for `_GIVE_UP_S` after that is cut off.

    Raises:
        ResourceError: a process died.
    """
    context = _Context()
    # Its end of file says to give up; unlike an event it is no lock that a killed one may hold.
    given_up, giving_up = context.Pipe(duplex=False)
    with given_up, giving_up:
        # What multiprocessing starts for itself is to outlive a hang-up, too.
        with shielded():
            pool = ProcessPoolExecutor(count, context, _begin, (begin, given, given_up))
        try:
            yield pool
        except BrokenProcessPool as error:
            what = f"a {doing} process died, as happens when memory runs out"
            raise ResourceError(what, todo=todo) from error
        except BaseException:
            giving_up.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


class _Worker(SpawnProcess):
    """Ends by SIGKILL alone: a broken pool sends SIGTERM, and waits."""

    def terminate(self) -> None:
        self.kill()


class _Context(SpawnContext):
    """spawn: the parent may hold threads and locks that a fork would copy."""

    Process = _Worker


def in_order(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results in the order of items, with at most `ahead` items under way or waiting."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
        with shielded():  # the pool may start a process here
            waiting.append(pool.submit(function, item))
    while waiting:
        yield waiting.popleft().result()


def cores() -> int:
    """Cores that this process may use."""
    return len(usable_cores())


def _begin(begin: Callable[..., None] | None, given: tuple[Any, ...], given_up: Connection) -> None:
    stop = threading.Event()
    threading.Thread(target=_end_with_parent, args=(given_up, stop), daemon=True).start()
    if begin is not None:
        begin(*given, stop)


def _end_with_parent(given_up: Connection, stop: threading.Event) -> None:
    """End when the parent is gone, or soon after it gave up: no part is waited for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([given_up, parent.sentinel])
    stop.set()
    wait([parent.sentinel], _GIVE_UP_S)
    os._exit(1)
