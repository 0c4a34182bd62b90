"""How many files this process may have open at once: the limit that ``ulimit -n`` shows.

What keeps files open only to be faster asks `share` how many, so that a checkpoint, a log or a
socket does not find none left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource

#: No work needs more, and some programs close every number up to the limit one by one.
_ENOUGH = 65_536

#: Files that torch, sockets between ranks, workers and the registry may need.
_RESERVED = 64

#: What is kept open for speed even where there is nearly nothing to share.
_LEAST = 4

#: This process, or the whole machine, has no more.
_NONE_LEFT = (errno.EMFILE, errno.ENFILE)


def raise_limit() -> None:
    """Raise the soft limit as far as the hard one allows, which needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has another, lower limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def share(most: int) -> int:
    """How many files something may keep open for speed: at most `most`, and at least one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return min(most, max(_LEAST, (soft - _RESERVED) // 2))


def none_left(error: BaseException | None) -> bool:
    """Whether an exception says that no more file can be opened; also in a library's words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NONE_LEFT
    return error is not None and "too many open files" in str(error).lower()


def lack() -> OSError | None:
    """What opening a few more files would raise now: a library may only say that it could not."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(_LEAST):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return error if none_left(error) else None
    return None


def advice(error: BaseException) -> tuple[str, str]:
    """What the limit is that an exception of `none_left` is about, and how to raise it."""
    if isinstance(error, OSError) and error.errno == errno.ENFILE:
        return (
            "all processes of this machine together have as many open as it allows (fs.file-max)",
            "end what holds them, or raise it: `sysctl fs.file-max`",
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(4096, 4 * soft)
    how = f"raise it before the command: `ulimit -n {wanted}`"
    if hard != resource.RLIM_INFINITY and hard < wanted:
        how = (
            f"raise the hard limit of {hard} (`ulimit -Hn`) to {wanted}: in a new shell, in "
            f"limits.conf, by LimitNOFILE={wanted} of a service or `--ulimit nofile={wanted}` of "
            "a container"
        )
    return f"this process may have {soft} open (`ulimit -n`)", how
