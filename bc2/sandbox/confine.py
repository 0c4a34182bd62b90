"""How a process locks itself in: with namespaces, or with Landlock where these are denied.

Both end with no capabilities, no new privileges, limits and a seccomp filter, so that a
program gets the same answers in both. What is denied here stays denied: nothing run later
in the process can take it back.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

from bc2.sandbox import kernel
from bc2.sandbox.limits import Limits
from bc2.sandbox.readable import DEVICES
from bc2.sandbox.syscalls import seccomp_filter, this_machine

#: The program's own directory, where there are namespaces.
BOX = "/box"

#: The user inside a namespace; outside it is another.
INNER = 1000

_ALL = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a program runs: the mode, what it may read, its directory, its user."""

    mode: str
    readable: list[str]
    folder: str
    user: int
    """Outside, and only if bc2 is root or has a namespace of its own: else no one else's."""

    may_change_user: bool


def enter_namespaces(place: Place, limits: Limits, ask_for_mapping: Callable[[], None]) -> None:
    """Leave all namespaces of the machine; the next child is the first process of the new.

    Args:
        ask_for_mapping: returns once someone outside has mapped `INNER` to a user.
    """
    if os.geteuid() == 0:
        os.setgroups([])
    kernel.unshare(_ALL)
    ask_for_mapping()
    os.setresgid(INNER, INNER, INNER)
    os.setresuid(INNER, INNER, INNER)
    size = f"size={limits.file_bytes},nr_inodes=4096,mode=700"
    kernel.mount("tmpfs", BOX, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size)
    kernel.set_capabilities()


def build_root(readable: list[str]) -> None:
    """Give this process a file system with nothing but what programs may read.

    Its namespace must be its own already. Everything is read-only, submounts too.
    """
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    base = _mount_point(readable)
    kernel.mount("tmpfs", base, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
    for path in readable:
        _bind(path, base + path)
    os.makedirs(base + BOX)
    kernel.read_only(base, nodev=True, recursive=True)
    # Once more writable, for what has to be neither.
    kernel.mount("none", base, "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_NOSUID)
    for path in DEVICES:
        _bind(path, base + path)
        kernel.read_only(base + path, nodev=False, recursive=False)
    os.mkdir(base + "/old")
    kernel.pivot_root(base, base + "/old")
    os.chdir("/")
    kernel.unmount("/old")
    os.rmdir("/old")
    kernel.read_only("/", nodev=True, recursive=False)


def _mount_point(readable: list[str]) -> str:
    for path in ("/mnt", "/media", "/srv", "/opt", "/var/tmp", "/tmp"):
        hidden = any(p.startswith(path + "/") for p in readable)
        if os.path.isdir(path) and not hidden and not os.path.islink(path):
            return path
    raise OSError(2, "no folder such as /mnt to mount a new root on")


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    kernel.mount(source, target, "", kernel.MS_BIND | kernel.MS_REC)


def lock_in(place: Place, limits: Limits, threads_of_user: int) -> None:
    """The last step in both modes, made by the process that runs the program.

    Args:
        threads_of_user: threads that count against this user's limit already.
    """
    if place.mode == "landlock":
        _enter_landlock(place)
    os.chdir(place.folder)
    _set_limits(limits, threads_of_user)
    kernel.not_dumpable()
    kernel.die_with_parent()
    kernel.no_new_privileges()
    machine = this_machine()
    if machine is None:
        raise OSError(38, "no seccomp filter for this processor")
    kernel.set_seccomp(seccomp_filter(machine, os.getpid()))


def _enter_landlock(place: Place) -> None:
    keep = 0
    if place.may_change_user:
        if not all(_is_for_all(path) for path in place.readable):
            # Python lies where only root may look (/root/.pyenv). With this capability a
            # program reads it too; which files it reads at all is what Landlock says.
            keep = 1 << kernel.CAP_DAC_READ_SEARCH
            kernel.keep_capabilities()
        os.setgroups([])
        os.setresgid(place.user, place.user, place.user)
        os.setresuid(place.user, place.user, place.user)
    kernel.set_capabilities(keep)
    kernel.no_new_privileges()
    folders = [p for p in place.readable if os.path.isdir(p)]
    files = [p for p in place.readable if not os.path.isdir(p)]
    kernel.set_landlock(
        [(path, kernel.READ_FILES) for path in folders]
        + [(path, kernel.READ_ONE) for path in files]
        + [(path, kernel.WRITE_ONE) for path in DEVICES]
        + [(place.folder, kernel.KEEP_FILES)]
    )


def _is_for_all(path: str) -> bool:
    """Whether any user may read what lies there."""
    path = os.path.realpath(path)
    if not os.stat(path).st_mode & 0o4:
        return False
    while path != "/":
        if os.path.isdir(path) and not os.stat(path).st_mode & 0o1:
            return False
        path = os.path.dirname(path)
    return True


def _set_limits(limits: Limits, threads_of_user: int) -> None:
    kept = {
        resource.RLIMIT_CPU: (limits.cpu_seconds, limits.cpu_seconds + 1),
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_NPROC: threads_of_user + limits.processes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_STACK: 8 << 20,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, value in kept.items():
        most = resource.getrlimit(which)[1]
        soft, hard = value if isinstance(value, tuple) else (value, value)
        if most != resource.RLIM_INFINITY:  # what the machine allows may be less
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(which, (soft, hard))
