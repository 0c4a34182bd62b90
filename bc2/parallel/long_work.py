"""Work of minutes or hours that ranks share, each at its own pace.

A rank that waits in a collective for one that works gives up after the collective's time limit,
obeys no signal and shows nothing. So the work is done on a thread, and meanwhile the ranks tell
each other again and again how far they are: the limit is on ranks that get no further, a rank
that dies ends the others at once, and a failure anywhere stops the work everywhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, Literal, TypeVar

from bc2.console import Progress, progress
from bc2.errors import RunFailed
from bc2.parallel.agreement import as_on_other_ranks
from bc2.parallel.mesh import Group
from bc2.parallel.rank_store import spans

T = TypeVar("T")

#: How often ranks tell each other how far they are, seconds.
TELL_S = 0.5

#: How long all ranks may get no further, seconds: a disk or a network hangs.
PATIENCE_S = 1800.0

#: Work that is over sooner shows no progress, seconds.
_SILENT_S = 2.0

State = Literal["working", "done", "failed"]


class Abandoned(Exception):
    """Raised in work that nobody waits for any more."""


class Pace:
    """How far this rank is: its working thread counts, its main thread reads."""

    def __init__(self) -> None:
        self.done = 0
        self.abandoned = False

    def count(self, amount: int) -> None:
        """Told by the work as it goes on. Raises: Abandoned if another rank failed."""
        if self.abandoned:
            raise Abandoned
        self.done += amount


def work_together(
    ranks: Group,
    work: Callable[[Pace], T],
    *,
    title: str | None = None,
    total: int = 0,
    patience_s: float = PATIENCE_S,
) -> list[T]:
    """Do a share of the work on every rank; what all of them returned, in the order of ranks.

    Args:
        work: done on a thread; it counts bytes in its `Pace`, at least every few seconds.
        title: what is done, for the line that shows how far all ranks are; None: none is shown.
        total: bytes that the ranks will have counted in all.
        patience_s: how long no rank may count anything.

    Raises:
        Exception: what the work of a rank failed with, the same on every rank.
        RunFailed: the ranks that are not done got no further for too long; on every rank.
    """
    aside = _Aside(work)
    try:
        with _shown(title, total) as show:
            _wait(ranks, aside, show, patience_s)
    finally:
        aside.pace.abandoned = True
    error = aside.error
    errors = ranks.all_gather_object(error and as_on_other_ranks(error, ranks))
    for rank, other in enumerate(errors):
        if other is not None:
            raise error if error is not None and rank == ranks.rank else other
    return ranks.all_gather_object(aside.result())


class _Aside(Generic[T]):
    """The work of this rank, on a thread."""

    def __init__(self, work: Callable[[Pace], T]):
        self.pace = Pace()
        self.error: Exception | None = None
        self._returned: list[T] = []
        # A daemon: a read from a disk that hangs must not keep the process.
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[Pace], T]) -> None:
        try:
            self._returned.append(work(self.pace))
        except Abandoned:
            pass
        except Exception as error:
            self.error = error

    @property
    def state(self) -> State:
        if self.error is not None:
            return "failed"
        return "done" if self._returned else "working"

    def result(self) -> T:
        return self._returned[0]


def _wait(ranks: Group, aside: _Aside[T], show: Callable[[int], None], patience_s: float) -> None:
    """Wait until all ranks are done or one has failed, which all see in the same round."""
    most, since = -1, time.monotonic()
    while True:
        aside.thread.join(TELL_S)
        state = aside.state  # before the count: one that is done has counted all
        told = ranks.all_gather_object((aside.pace.done, state, time.monotonic() - since))
        done = sum(count for count, _, _ in told)
        show(done)
        working = [rank for rank, (_, state, _) in enumerate(told) if state == "working"]
        if not working or any(state == "failed" for _, state, _ in told):
            return
        if done > most:
            most, since = done, time.monotonic()
        elif told[0][2] > patience_s:  # rank 0's clock, so that all decide alike
            raise RunFailed(
                f"{spans(working)} got no further for {patience_s:g} s",
                todo="see whether the disk or network that is read from hangs; then start again",
            )


@contextmanager
def _shown(title: str | None, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar or line once it takes long, told how many bytes are done in all."""
    began = time.monotonic()
    with ExitStack() as held:
        bar: Progress | None = None
        shown = 0

        def show(done: int) -> None:
            nonlocal bar, shown
            if bar is None and title and time.monotonic() - began > _SILENT_S:
                bar = held.enter_context(progress(title, total / 1e9, "GB"))
            if bar is not None:
                bar((done - shown) / 1e9)
                shown = done

        yield show
