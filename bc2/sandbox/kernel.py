"""Calls of the Linux kernel that Python's `os` lacks (some until 3.12), through ctypes.

All raise OSError with the name of the call, so that a refusal can say what was denied.
"""

from __future__ import annotations

import ctypes
import os
import struct

from bc2.sandbox.syscalls import this_machine

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

CAP_DAC_READ_SEARCH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SIGKILL = 9

_MOUNT_ATTR_NOSUID = 0x2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
READ_FILES = (1 << 2) | (1 << 3)  # READ_FILE, READ_DIR
READ_ONE = 1 << 2
# WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE: no folders, links, devices
KEEP_FILES = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 5) | (1 << 8) | (1 << 14)
WRITE_ONE = (1 << 1) | (1 << 2)
# Of the first version, then what each later one added.
_ACCESSES = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> int:
    machine = this_machine()
    if machine is None:
        raise OSError(38, f"{name}: no number known for this processor")
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = int(_libc.syscall(ctypes.c_long(machine.number[name]), *plain))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    _call("unshare", flags)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _call("mount", *[os.fsencode(text) for text in (source, target, kind)], flags, data.encode())


def unmount(target: str) -> None:
    _call("umount2", os.fsencode(target), MNT_DETACH)


def pivot_root(new: str, old: str) -> None:
    _call("pivot_root", os.fsencode(new), os.fsencode(old))


def read_only(path: str, *, nodev: bool, recursive: bool) -> None:
    """Make a mount read-only and without setuid, with all mounts below it (Linux 5.12)."""
    attributes = MS_RDONLY | _MOUNT_ATTR_NOSUID | (MS_NODEV if nodev else 0)
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _call("mount_setattr", _AT_FDCWD, os.fsencode(path), flags, wanted, len(wanted))


def _prctl(name: str, option: int, value: int = 0) -> None:
    unused = ctypes.c_ulong(0)
    arguments = (ctypes.c_ulong(value), unused, unused, unused)
    if _libc.prctl(ctypes.c_int(option), *arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {name}: {os.strerror(number)}")


def die_with_parent() -> None:
    """SIGKILL when the parent ends; forgotten by the kernel when a process changes its user."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, _SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every process below whose own parent ends."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def not_dumpable() -> None:
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def keep_capabilities() -> None:
    """Keep the permitted capabilities when root becomes another user."""
    _prctl("PR_SET_KEEPCAPS", _PR_SET_KEEPCAPS, 1)


def no_new_privileges() -> None:
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def set_capabilities(keep: int = 0) -> None:
    """Drop all capabilities except those in the bit mask `keep` (numbers below 32)."""
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
    _call("capset", header, struct.pack("=6I", keep, keep, 0, 0, 0, 0))


def set_seccomp(steps: bytes) -> None:
    """Install a seccomp filter for this process, for good."""
    program = ctypes.create_string_buffer(steps, len(steps))
    head = struct.pack("@HP", len(steps) // 8, ctypes.addressof(program))
    _call("seccomp", 1, 0, head)  # SECCOMP_SET_MODE_FILTER


def landlock_version() -> int:
    """Which version of Landlock the kernel has.

    Raises:
        OSError: none, or it is switched off.
    """
    return _call("landlock_create_ruleset", None, 0, _LANDLOCK_CREATE_RULESET_VERSION)


def set_landlock(rules: list[tuple[str, int]]) -> None:
    """Deny all access to files, except for these paths and what is below them, for good."""
    version = landlock_version()
    handled = 0
    for since, accesses in _ACCESSES.items():
        handled |= accesses if version >= since else 0
    network = 3 if version >= 4 else 0  # binding and connecting TCP
    scopes = 3 if version >= 6 else 0  # abstract sockets, signals
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("=QQQ", handled, network, scopes)[:size]
    ruleset = _call("landlock_create_ruleset", attributes, size, 0)
    for path, accesses in rules:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", accesses & handled, fd)
        _call("landlock_add_rule", ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        os.close(fd)
    _call("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)
