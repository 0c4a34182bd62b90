"""Where the ranks of a run meet: a store of torch's, waited for by a thread.

torch's own rendezvous waits in C++, where no signal is obeyed, says nothing, and does not know
which rank is missing.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from bc2.console import note
from bc2.errors import RunFailed
from bc2.process.launcher_variables import rendezvous_address
from bc2.process.signals import LAUNCHED
from bc2.ranks import JOINING, LOST, RENDEZVOUS_TIMEOUT_S, place

T = TypeVar("T")

#: How often a waiting thread looks again, seconds, and its main thread for signals.
_LOOK_S = 0.1

#: A rank waits so long before it says that it waits: the first of a machine, and its others.
_SILENT_S = (1.0, 10.0)


def run_aside(work: Callable[[], T], waiting: Callable[[], None] = lambda: None) -> T:
    """Run what may block in C++ in a thread, so that this one obeys signals.

    Args:
        waiting: called again and again meanwhile; what it raises ends the waiting.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(work())
        except BaseException as error:
            raised.append(error)

    # A daemon: nothing waits for it when the process ends.
    thread = threading.Thread(target=run, name=JOINING, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
        if thread.is_alive():
            waiting()
    if raised:
        raise raised[0]
    return returned[0]


def join_store(wait_s: float = RENDEZVOUS_TIMEOUT_S) -> Any:
    """The store of the run's ranks, once all of them have come to it.

    Args:
        wait_s: how long to wait for them.

    Raises:
        UsageError: the environment does not say where they meet.
        RunFailed: some did not come, which it names; or the port is in use.
    """
    meeting = _Meeting(wait_s)
    try:
        return run_aside(meeting.gather, meeting.look)
    finally:
        meeting.over.set()


class _Meeting:
    """The coming together of ranks, as one of them sees it."""

    def __init__(self, wait_s: float):
        self._place = place()
        self._host, self._port = rendezvous_address(os.environ)
        self._wait_s = wait_s
        self._began = time.monotonic()
        self._said = False
        # torch's agent holds the store for the ranks that it starts, else rank 0 does.
        self._held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._holds = self._place.rank == 0 and not self._held
        self._reached = False
        self._missing = "rank 0" if not self._held else "the launcher"
        self.over = threading.Event()

    # In the thread that waits.

    def gather(self) -> Any:
        """Open the store, tell that this rank is there, and wait until all are."""
        store = self._open()
        self._reached, self._missing = True, "rank 0"
        try:
            if self._place.rank == 0:
                self._count(store)
            else:
                self._wait_for_count(store)
        except RuntimeError as error:
            raise RunFailed(
                f"rank {self._place.rank} {LOST}: the store at {self._where} is gone",
                todo="see what rank 0 said, and start all again",
            ) from error
        return store

    def _open(self) -> Any:
        make = partial(
            TCPStore, self._host, self._port, self._place.world, is_master=self._holds,
            timeout=timedelta(seconds=self._wait_s), multi_tenant=True, wait_for_workers=False,
            use_libuv=os.environ.get("USE_LIBUV", "1") == "1",
        )  # fmt: skip
        while True:
            try:
                # torch would log each attempt at a port where nothing listens yet.
                if self._holds or listens(self._host, self._port):
                    return make()
            except RuntimeError as error:
                if self._holds:
                    raise self._cannot_hold(error) from error
            # `look` says when it is enough.
            self.over.wait(_LOOK_S)

    def _count(self, store: Any) -> None:
        """Rank 0 looks who has come, and tells the others."""
        missing = list(range(1, self._place.world))
        while not self.over.is_set():
            missing = [rank for rank in missing if not store.check([self._key(rank)])]
            if not missing:
                store.set(self._key("all"), "")
                return
            self._missing = spans(missing)
            store.set(self._key("missing"), self._missing)
            if self._waited > self._wait_s:
                # The store ends with this process: the others have time to read why.
                store.set(self._key("late"), "")
                self.over.wait(1.0)
                raise self._late()
            self.over.wait(_LOOK_S)

    def _wait_for_count(self, store: Any) -> None:
        store.set(self._key(self._place.rank), "")
        while not (self.over.is_set() or store.check([self._key("all")])):
            if store.check([self._key("missing")]):
                self._missing = store.get(self._key("missing")).decode()
            if store.check([self._key("late")]):
                raise self._late()
            self.over.wait(_LOOK_S)

    def _key(self, what: object) -> str:
        # An agent may keep its store when it starts the ranks again.
        return f"bc2/{self._place.restarts}/{what}"

    # In the main thread.

    def look(self) -> None:
        """Say once that this rank waits. Raises: RunFailed if it has waited long enough."""
        waited = self._waited
        speaks = self._place.rank == 0 or not self._reached
        if speaks and not self._said and waited > _SILENT_S[self._place.local > 0]:
            self._said = True
            missing = "its own store" if self._holds and not self._reached else self._missing
            note(
                f"rank {self._place.rank} of {self._place.world} waits for {missing} at "
                f"{self._where}, up to {self._wait_s:g} s ({self._said_by})",
                every_rank=True,
            )
        # Rank 0 ends the waiting of those that have found it.
        if waited > self._wait_s + (2.0 if self._reached else 0.0):
            raise self._late()

    @property
    def _waited(self) -> float:
        return time.monotonic() - self._began

    @property
    def _where(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def _said_by(self) -> str:
        if LAUNCHED in os.environ:
            return "started by bc2 --nproc"
        return f"{self._place.said_by}, MASTER_ADDR={self._host}, MASTER_PORT={self._port}"

    def _late(self) -> RunFailed:
        longer = "or wait longer with --rendezvous-timeout"
        alone = "" if LAUNCHED in os.environ else f"; {self._place.alone}"
        me, at = f"rank {self._place.rank}", f"{self._where} in {self._wait_s:g} s"
        if self._reached:
            what = f"{self._missing} of {self._place.world} did not come to {at}"
            todo = f"start what is missing, and see that it can reach {self._where}"
        elif self._holds:
            what = f"{me} could not reach its own store at {at}"
            todo = "set MASTER_ADDR to a name of the machine of rank 0, by which all can reach it"
        else:
            what = f"{me} did not find {self._missing} at {at}"
            todo = "start rank 0 there, and see that its port can be reached from here"
        return RunFailed(what, where=self._said_by, todo=f"{todo}, {longer}{alone}")

    def _cannot_hold(self, error: RuntimeError) -> RunFailed:
        if "EADDRINUSE" in str(error):
            what = f"port {self._port}, where the ranks were to meet, is in use on this machine"
            todo = "give all ranks another MASTER_PORT, or stop what listens there"
        else:
            what = f"rank 0 cannot open a store at {self._where}: {str(error).splitlines()[0]}"
            todo = "see whether MASTER_ADDR and MASTER_PORT are right"
        return RunFailed(what, where=self._said_by, todo=todo)


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError:
        # Its name may be known later, too: that of a pod.
        return False
    return True


def spans(ranks: Sequence[int]) -> str:
    """Ranks in words: ``rank 1``, ``ranks 1, 3-7``."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    said = ", ".join("-".join(map(str, run)) for run in runs)
    return f"ranks {said}" if len(ranks) > 1 else f"rank {said}"
