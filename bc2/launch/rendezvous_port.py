"""Whether machines can meet at the port of ``--rendezvous``, found out in seconds.

torch itself would wait for minutes.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from bc2.errors import RunFailed
from bc2.launch.rank_options import Ranks
from bc2.parallel.rank_store import listens, run_aside

#: How soon a launcher answers another one.
ANSWER = timedelta(seconds=3)


def known_host(ranks: Ranks) -> bool | None:
    """Whether the ranks meet on this machine; None: its address will tell."""
    if ranks.node_rank is not None:
        return ranks.node_rank == 0
    return True if ranks.machines[1] == 1 else None


def check_port(ranks: Ranks) -> None:
    """A port that something else listens at would keep the ranks waiting for minutes.

    Raises:
        RunFailed: it is in use, there is no such machine, or its launcher does not come.
    """
    if ranks.rendezvous is None:
        return
    host, _, number = ranks.rendezvous.rpartition(":")
    host, port = host.strip("[]"), int(number)
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise _refusal(ranks, f"there is no machine {host!r}", "name the first one") from None
    other = "give all machines another port, or stop what listens there"
    if not known_host(ranks):
        _wait_for_first(ranks, host, port)
        if is_foreign(host, port):
            what = f"what listens at port {port} of {host} is no launcher of bc2"
            raise _refusal(ranks, what, other)
        return
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _refusal(ranks, f"port {port} is in use on this machine", other) from None


def _wait_for_first(ranks: Ranks, host: str, port: int) -> None:
    """Wait for the launcher of the first machine, if that is certainly another one.

    torch would wait for a minute, and obey no signal.
    """
    if known_host(ranks) is None and _is_here(host):
        return
    until = time.monotonic() + ranks.rendezvous_timeout
    while not run_aside(lambda: listens(host, port)):
        if time.monotonic() > until:
            what = f"nothing listens at port {port} of {host} after {ranks.rendezvous_timeout} s"
            todo = "start the first machine's launcher, or wait longer with --rendezvous-timeout"
            raise _refusal(ranks, what, todo)
        time.sleep(0.1)


def _is_here(host: str) -> bool:
    """Whether an address is this machine's: then a socket can be bound to it."""
    family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def _refusal(ranks: Ranks, what: str, todo: str) -> RunFailed:
    return RunFailed(what, where=f"--rendezvous {ranks.rendezvous}", todo=todo)


def is_foreign(host: str, port: int) -> bool:
    """Whether something listens there that is not the store of another launcher.

    Where nothing listens, the launcher of the first machine may still come.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    answered = threading.Event()

    def greet() -> None:
        with suppress(RuntimeError, ValueError):
            TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=ANSWER)
            answered.set()

    if not listens(host, port):
        return False
    with _stderr_discarded():
        # In a thread: with what never answers torch waits without end.
        greeting = threading.Thread(target=greet, daemon=True)
        greeting.start()
        greeting.join(2 * ANSWER.seconds)
    return not answered.is_set()


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Whatever writes to stderr, torch's C++ among it, writes to nobody."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
