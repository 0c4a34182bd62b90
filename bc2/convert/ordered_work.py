"""Pieces of a tensor worked on by threads, in order: by one for each core, or by one beside."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Pieces that wait for a thread beside while others are made.
_WAITING = 4


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `work` makes of each item, one after the other.

    So reading, computing and writing go on side by side, which threads inside torch's operations do
    not give. No more results are held than there are threads, and one.

    Raises:
        Exception: what `work` raises, in its place.
    """
    threads = len(os.sched_getaffinity(0))
    waiting: deque[Future[Result]] = deque()
    # Each has one of torch's threads: together they are as many as there are cores.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


@contextmanager
def beside(work: Callable[[Item], None]) -> Iterator[Callable[[Item], None]]:
    """Have items worked on in order by another thread; all are done when the context ends."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def take(item: Item) -> None:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _WAITING:
                waiting.popleft().result()

        yield take
        for future in waiting:
            future.result()
