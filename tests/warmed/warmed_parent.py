"""The warmed parent of `warmed`: imports what commands import, then forks a child for each.

    python -P warmed_parent.py SOCKET

It stays idle and alone: it runs nothing of bc2 and has no thread that a fork would miss, so that a
fork of it is as good as a start. It ends with whoever holds the other end of the socket.

A child's parent must be who asked for it, so that it can be waited for and sees how it ended. The
child is forked twice, and its parent ends at once; who asked is a subreaper meanwhile, and
adopts it.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import warmed

import bc2
from bc2.cli import VERBS

#: What bc2 imports only when it is needed, and most commands need.
LATE = [
    "deepspeed", "matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.ticker",
    "torch._dynamo", "torch._inductor", "torch.distributed.elastic.multiprocessing",
    "torch.distributed.elastic.rendezvous", "torch.distributed.launcher.api",
]  # fmt: skip

#: Threads that a fork starts anew where it needs them: the one of pyarrow's allocator.
FORKABLE = {"jemalloc_bg_thd"}

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

#: Signals that whoever asked is sent, or all of its group.
_OTHERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: What a program that is started here finds: an ignored signal stays ignored (nohup, ``&``).
_INHERITED = {signum: signal.getsignal(signum) for signum in _OTHERS}


def main(fd: int) -> None:
    """Be the parent, and in each child run its command."""
    connection = socket.socket(fileno=fd)
    _warm()
    command = _serve(connection)
    if command:
        _execute(**command)


def _warm() -> None:
    """Import all of bc2, and what its commands will ask for."""
    own = [found.name for found in pkgutil.walk_packages(bc2.__path__, "bc2.")]
    verbs = [f"bc2.commands.{verb.module}" for verb in VERBS.values()]
    for name in [*own, *verbs, *LATE]:
        if not name.endswith(".__main__"):
            importlib.import_module(name)
    tasks = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    more = [name for name in tasks[1:] if name not in FORKABLE]
    assert not more, f"importing started {more}, which no fork has"
    gc.collect()
    gc.freeze()


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork a child for each order, until nobody can give one.

    Returns:
        In a child: its command. In the parent: None.
    """
    for signum in _OTHERS:
        signal.signal(signum, signal.SIG_IGN)
    while (received := _receive(connection)) is not None:
        order, fds = received
        between = os.fork()
        if not between:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.0002)
            if os.getppid() != order["caller"]:
                os._exit(1)  # who asked did not wait for it
            connection.close()
            return _prepare(order, fds)
        for fd in fds:
            os.close(fd)
        os.waitpid(between, 0)
    return None


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """An order, and the descriptors that came with it; None at the end."""
    fds = array.array("i")
    head, ancillary, *_ = connection.recvmsg(8, socket.CMSG_SPACE(64 * fds.itemsize))
    if len(head) < 8:
        return None
    for _, _, data in ancillary:
        fds.frombytes(data)
    order, length = b"", int.from_bytes(head, "big")
    while len(order) < length:
        order += connection.recv(length - len(order))
    return json.loads(order), fds.tolist()


def _prepare(order: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
    """Make of a fresh child what a fresh interpreter finds.

    Returns:
        Its command, or what `_serve` returns in a parent of its own children.
    """
    if order["mortal"]:
        warmed.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    tell, *streams = _place(fds, [0, 1, 2, *order["keep"]])
    try:
        if order["new_session"]:
            os.setsid()
        if order["group"] >= 0:
            os.setpgid(0, order["group"])
        os.chdir(order["cwd"])
    except OSError as error:
        answer = {"pid": os.getpid(), "errno": error.errno, "where": order["cwd"]}
        _tell(tell, answer)
        os._exit(1)
    if order["children"]:
        ours, theirs = socket.socketpair()
        if not os.fork():
            ours.close()
            return _serve_children(theirs, [tell, *streams])
        theirs.close()
        _fork_own(warmed.Channel(ours, order["environment"]))
    _become(order)
    _tell(tell, {"pid": os.getpid()})
    return dict(order["command"])


def _tell(pipe: int, answer: dict[str, Any]) -> None:
    """Tell who asked how the start went; end where nobody listens any more."""
    try:
        os.write(pipe, json.dumps(answer).encode())
    except BrokenPipeError:
        os._exit(1)  # a signal ended who asked meanwhile
    os.close(pipe)


def _place(fds: list[int], targets: list[int]) -> list[int]:
    """Give descriptors the numbers that they are to have.

    Args:
        fds: the first may have any number; the others get those of `targets`.

    Returns:
        The descriptors as they are now.
    """
    # Aside first: one's number may be another's target.
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(targets) + 1) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, target in zip(aside[1:], targets, strict=True):
        os.dup2(fd, target)
        os.close(fd)
    return [aside[0], *targets]


def _serve_children(connection: socket.socket, fds: list[int]) -> dict[str, Any] | None:
    """Be a command's own parent, and hold nothing that the command holds."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(nothing, fd) if fd < 3 else os.close(fd)
    os.close(nothing)
    command = _serve(connection)
    if command is None:
        os._exit(0)
    return command


def _fork_own(channel: warmed.Channel) -> None:
    """Have all that this process starts be forked, whoever starts it."""
    execute = subprocess.Popen._execute_child

    def fork(self: Any, *given: Any) -> None:
        warmed.fork_child(self, given, lambda *same: execute(self, *same), lambda: channel, True)

    subprocess.Popen._execute_child = fork


def _become(order: dict[str, Any]) -> None:
    """Replace what a start gives a process."""
    for signum, handler in _INHERITED.items():
        signal.signal(signum, handler)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.path[:0] = filter(None, os.environ.get("WARMED_PATH", "").split(os.pathsep))
    for name, value in bc2.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "RANK" in os.environ:
        # For a test to find it by: /proc shows the environment of the parent.
        warmed.prctl(_PR_SET_NAME, f"rank {os.environ['RANK']}".encode())
    tempfile.tempdir = None
    np.random.seed()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream.isatty())


def _execute(how: str, what: str, arguments: list[str], safe: bool) -> None:
    """Do what the interpreter does with its command line."""
    place = {"-m": os.getcwd(), "-c": "", "script": str(Path(what).resolve().parent)}
    if not safe:
        sys.path.insert(0, place[how])
    sys.argv = [what if how == "script" else how, *arguments]
    if how == "-m":
        if not hasattr(sys.modules.get(what), "__path__"):
            sys.modules.pop(what, None)  # it is run, not imported
        runpy._run_module_as_main(what)
        return
    main = vars(sys.modules["__main__"])
    name = what if how == "script" else "<string>"
    main.update({"__file__": what} if how == "script" else {})
    text = Path(what).read_text() if how == "script" else what
    exec(compile(text, name, "exec"), main)
