"""The process that starts programs: small, without secrets, itself without a way back.

It runs without site packages and with an empty environment. For each job it forks a
supervisor; it never reads a program or a test, so its children inherit none.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from bc2 import ENVIRONMENT
from bc2.sandbox import kernel
from bc2.sandbox.confine import BOX, INNER, Place, build_root
from bc2.sandbox.limits import Limits
from bc2.sandbox.supervisor import supervise

#: What programs import most: loaded once, before they are forked.
_PRELOADED = (
    "bisect", "cmath", "collections", "copy", "datetime", "functools", "heapq", "itertools",
    "math", "operator", "random", "re", "statistics", "string", "typing",
)  # fmt: skip

#: Users that no account should have: programs started by root run as one of them.
_FIRST_USER, _USERS = 64000, 1000


def prepare(settings: dict[str, Any]) -> tuple[Place, int]:
    """Make what all programs of this mode share; the place, and a descriptor of ``/proc``.

    Raises:
        OSError: the machine denies something; its text says what.
    """
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    root, mode = os.geteuid() == 0, settings["mode"]
    user = _FIRST_USER + os.getpid() % _USERS if root else INNER
    if mode == "namespaces":
        if root:
            kernel.unshare(kernel.CLONE_NEWNS)
        else:
            _own_namespace(proc)
        build_root(settings["readable"])
    elif kernel.landlock_version() < 3:
        raise OSError(38, "Landlock older than version 3 (Linux 6.2)")
    return Place(mode, settings["readable"], BOX, user, root), proc


def _own_namespace(proc: int) -> None:
    """Namespaces in which an ordinary user may mount."""
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
    for name, text in (
        ("setgroups", "deny"),
        ("gid_map", f"{INNER} {group} 1"),
        ("uid_map", f"{INNER} {user} 1"),
    ):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(fd, text.encode())
        os.close(fd)


def main() -> None:
    """Prepare, tell how that went, then start a program for each socket that comes."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # 0 to 2 stay taken: programs put their own there
    os.dup2(nothing, 1)
    settings = json.loads(sys.argv[1])
    try:
        place, proc = prepare(settings)
    except OSError as error:
        control.sendall(json.dumps({"error": str(error.strerror)}).encode())
        return
    sys.path[:] = settings["module_folders"]
    for name in ENVIRONMENT:  # what bc2 sets when it is imported is not for programs
        os.environ.pop(name, None)
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # no collection in a child copies the pages of what is here
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.sendall(b"{}")
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1 << 12, 1)
        if not data:
            return  # whoever started this has ended
        _start(control, socket.socket(fileno=fds[0]), json.loads(data), place, proc, settings)


def _start(
    control: socket.socket,
    job: socket.socket,
    limits: dict[str, Any],
    place: Place,
    proc: int,
    settings: dict[str, Any],
) -> None:
    parent = os.getpid()
    if os.fork():
        job.close()
        return
    try:
        kernel.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        supervise(job, place, Limits(**limits), proc, settings["temporary"])
    finally:
        os._exit(0)
