"""What can go wrong, with the exit code each kind of failure ends in.

An error says what happened, where (file, line, key, row) and what to do about
it; `bc2.cli` prints the three and exits with `exit_code`. Anything that is not
a `Bc2Error` is a defect of bc2 and shows as one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any

from bc2.process import open_files

#: How torch and CUDA's libraries say that memory ran out, in errors of no class of their own.
_NO_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Bc2Error(Exception):
    """A failure a person can act on.

    Args:
        what: one sentence, what is wrong.
        where: the place (``file:line``, a key, a row), if there is one.
        todo: what to do about it, as an imperative.
    """

    exit_code = 1

    #: Whether the same would come again, whoever tries and how often.
    lasting = False

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None):
        super().__init__(what)
        self.what = what
        self.where = where
        self.todo = todo

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        todo = f"; {self.todo}" if self.todo else ""
        return f"{self.what}{where}{todo}"


class RunFailed(Bc2Error):
    """The work was understood and could not be done (exit 1)."""


class TooManyOpenFiles(RunFailed):
    """No more file can be opened, by this process or on this machine (exit 1)."""


class BadTraining(RunFailed):
    """What is trained came to nothing: the same steps would come to it again (exit 1)."""

    lasting = True


class UsageError(Bc2Error):
    """The command line asks for something impossible (exit 2)."""

    exit_code = 2
    lasting = True


class RecipeError(UsageError):
    """A recipe is broken: syntax, unknown key, wrong type, impossible value (exit 2)."""


class DataError(Bc2Error):
    """Input data is missing, malformed, empty or too little (exit 3)."""

    exit_code = 3
    lasting = True


class RefError(Bc2Error):
    """No artifact answers to a reference, or several do (exit 4)."""

    exit_code = 4
    lasting = True


class IntegrityError(Bc2Error):
    """An artifact is not what its manifest says (exit 5)."""

    exit_code = 5
    lasting = True


class ResourceError(Bc2Error):
    """Out of memory or disk (exit 6)."""

    exit_code = 6
    lasting = True


class CallFailed(OSError):
    """A system call that the file system of a path refuses, with what that means.

    Args:
        error: what the call raised.
        call: its name, such as ``flock``.
        path: what it was called for.
        meaning: what is not safe without it.
        todo: what to do about it.
    """

    def __init__(self, error: OSError, call: str, path: object, *, meaning: str, todo: str):
        super().__init__(error.errno, error.strerror, str(path))
        self.call = call
        self.meaning = meaning
        self.todo = todo

    def __reduce__(self) -> tuple[Any, ...]:
        # What OSError pickles itself by is not what this class is made of.
        made = partial(CallFailed, meaning=self.meaning, todo=self.todo)
        return made, (OSError(self.errno, self.strerror), self.call, self.filename)


class Interrupted(Bc2Error):
    """Stopped by a signal, with nothing lost (exit 128 + signal)."""

    def __init__(self, what: str, *, signum: int, todo: str | None = None):
        super().__init__(what, todo=todo)
        self.exit_code = 128 + signum


def nearest(wrong: str, right: Iterable[str]) -> str | None:
    """The known name most like `wrong`, or None if nothing is close."""
    matches = get_close_matches(wrong, list(right), n=1, cutoff=0.6)
    return matches[0] if matches else None


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on a GPU."""
    # torch's class by its name, so that nobody imports torch to find out.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)


def too_many_open_files(
    error: BaseException, doing: str, *, where: str | None = None
) -> TooManyOpenFiles:
    """Say an exception of `open_files.none_left` with the limit that was met."""
    limit, todo = open_files.advice(error)
    return TooManyOpenFiles(f"too many open files while {doing}: {limit}", where=where, todo=todo)


def from_os_error(error: OSError, doing: str) -> Bc2Error:
    """Say an operating-system error in our terms: full disks are 6, missing input 3."""
    path = str(error.filename) if error.filename else None
    if isinstance(error, CallFailed):
        reason = f"{error.call} fails: {str(error.strerror).lower()}"
        return RunFailed(f"{reason}; {error.meaning}", where=path, todo=error.todo)
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"disk full while {doing}", where=path, todo="free some space and run the same again"
        )
    if open_files.none_left(error):
        return too_many_open_files(error, doing, where=path)
    if isinstance(error, FileNotFoundError):
        return DataError(f"no such file while {doing}", where=path, todo="check the path")
    if isinstance(error, PermissionError):
        return RunFailed(
            f"permission denied while {doing}",
            where=path,
            todo="check the owner and mode, or set BC2_HOME to a directory you may write to",
        )
    if error.errno == errno.EROFS:
        return RunFailed(
            f"read-only file system while {doing}",
            where=path,
            todo="set BC2_HOME, or the path that you named, to a directory you may write to",
        )
    return RunFailed(f"{reason} while {doing}", where=path)
