"""Processes that are locked in: started, told apart, watched until they are gone.

Each is `watcher -> program` (Landlock) or `watcher -> init -> program` (namespaces), forked
from the supervisor, so no program starts Python anew. The last of our code before the program
tells, over a pipe that the program does not have, how the program ended.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass

from bc2.sandbox import kernel
from bc2.sandbox.confine import INNER, Place, enter_namespaces, lock_in
from bc2.sandbox.limits import Limits


@dataclass(frozen=True)
class Child:
    """A watcher's pid, and the pipe that tells ``E`` and why it could not start the program,
    or ``W`` and the program's wait status."""

    pid: int
    status: int


def spawn(
    place: Place,
    limits: Limits,
    proc: int,
    watchers: list[int],
    keep: list[int],
    work: Callable[[], None],
) -> Child:
    """Fork, lock the child in, run `work` there.

    Args:
        proc: a descriptor of the machine's ``/proc``.
        watchers: gets the child's pid as soon as there is one.
        keep: the only descriptors that the program has, besides 0, 1 and 2 of its own.
        work: what the program does; standard input and output are its business.

    Raises:
        OSError: no process can be started, or its user not be mapped.
    """
    status, told = os.pipe()
    ask, asked = os.pipe()  # the child is in its namespaces
    mapped, is_mapped = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(status)
        os.close(ask)
        os.close(is_mapped)
        _guarded(told, lambda: _watch(place, limits, (asked, mapped, told), keep, work))
    watchers.append(pid)
    for fd in (told, asked, mapped):
        os.close(fd)
    try:
        if place.mode == "namespaces" and os.read(ask, 1):
            _map_user(proc, pid, place.user)
            os.write(is_mapped, b"m")
    finally:
        os.close(ask)
        os.close(is_mapped)
    return Child(pid, status)


def _map_user(proc: int, pid: int, user: int) -> None:
    # A group may be mapped by an ordinary user only once no process there can change groups.
    for name, text in (("setgroups", "deny"), ("gid_map", None), ("uid_map", None)):
        fd = os.open(f"{pid}/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(fd, (text or f"{INNER} {user} 1").encode())
        os.close(fd)


def _guarded(told: int, run: Callable[[], None]) -> None:
    """Run in a forked process, which ends here whatever happens."""
    try:
        run()
    except BaseException as error:
        os.write(told, f"E{error}".encode()[:500])
    finally:
        os._exit(1)


def _watch(
    place: Place,
    limits: Limits,
    pipes: tuple[int, int, int],
    keep: list[int],
    work: Callable[[], None],
) -> None:
    asked, mapped, told = pipes
    _close_all_but([0, 1, 2, *pipes, *keep])
    kernel.die_with_parent()
    others = 0 if place.may_change_user or place.mode == "namespaces" else _threads_of_user()
    if place.mode == "namespaces":

        def ask_for_mapping() -> None:
            os.write(asked, b"a")
            if not os.read(mapped, 1):
                raise OSError(1, "uid_map: not written")

        enter_namespaces(place, limits, ask_for_mapping)
        kernel.die_with_parent()  # forgotten with the change of the user
        others = 3  # this process, init, the program
        _become_init(told)
    _run_program(place, limits, others, told, keep, work)


def _become_init(told: int) -> None:
    """Go on as the first process of the new pid namespace; what is here only waits for it."""
    alive, lives = os.pipe()
    pid = os.fork()
    if pid:
        _close_all_but([lives])
        os.waitpid(pid, 0)
        os._exit(0)
    os.close(lives)
    kernel.die_with_parent()
    gone = select.poll()
    gone.register(alive, select.POLLIN)
    if gone.poll(0):  # the parent ended before it could be watched
        os._exit(1)


def _run_program(
    place: Place,
    limits: Limits,
    threads: int,
    told: int,
    keep: list[int],
    work: Callable[[], None],
) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        _close_all_but([told])
        _, status = os.waitpid(pid, 0)
        os.write(told, b"W%d" % status)
        os._exit(0)
    _close_all_but([0, 1, 2, told, *keep])
    lock_in(place, limits, threads)
    if os.getppid() != parent:
        os._exit(1)
    os.close(told)
    work()
    os._exit(0)


def _close_all_but(keep: list[int]) -> None:
    low = 0
    for fd in sorted(set(keep)):
        if low < fd:  # an empty range from 0 would close all
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 30)


def _threads_of_user() -> int:
    """How many threads the user has: RLIMIT_NPROC counts all of them."""
    user, found = os.geteuid(), 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                found += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it has ended meanwhile
            continue
    return found
