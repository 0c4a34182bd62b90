"""Worker processes for work that goes part by part; they end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

from bc2.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def worker_pool(
    count: int, doing: str, todo: str, begin: Callable[..., None] | None = None, *given: Any
) -> Iterator[ProcessPoolExecutor]:
    """Processes for as long as the context lasts.

    Args:
        count: how many, at least one.
        doing: what they do, for the message when one of them dies.
        todo: what a person can do then.
        begin: called in each with `given` and then an event that is set when the parent gives up.

    Raises:
        ResourceError: a process died.
    """
    # spawn: the parent may hold threads and locks that a fork would copy.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(count, context, _begin, (begin, given, stop))
    try:
        yield pool
    except BrokenProcessPool as error:
        what = f"a {doing} process died, as happens when memory runs out"
        raise ResourceError(what, todo=todo) from error
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def no_ctrl_c() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: it is for the parent, which tells them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_order(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results in the order of items, with at most `ahead` items under way or waiting."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
        with no_ctrl_c():  # the pool may start a process here
            waiting.append(pool.submit(function, item))
    while waiting:
        yield waiting.popleft().result()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _begin(begin: Callable[..., None] | None, given: tuple[Any, ...], stop: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*given, stop)


def _end_with_parent() -> None:
    """A pool's workers outlive a killed parent, waiting for work: these do not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
