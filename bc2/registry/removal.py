"""Taking an artifact's directory away: first whether it can be, then all of it.

A directory is renamed out of sight in one step, then deleted. What file systems and
owners may refuse is asked for before anything is changed, so that the index can be
told in between.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bc2 import files
from bc2.errors import Bc2Error, RunFailed, from_os_error
from bc2.registry import staging
from bc2.registry.draft import MANIFEST, Kind

_NO_RIGHT = (errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: What a directory is told that could be moved, but onto one that is not empty; and a link.
_COULD_MOVE = (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR)

_TODO = {
    errno.EACCES: "let its owner remove it, or change owner and mode",
    errno.EPERM: "let its owner remove it, or change owner, mode and attributes (`lsattr -d`)",
    errno.EBUSY: "unmount what is mounted there",
    errno.EROFS: "it is on a disk that may only be read",
}


class StillNeeded(RunFailed):
    """It is not removed since something uses it, refers to it or is made from it (exit 1)."""


@dataclass(frozen=True)
class Removal:
    """A directory that can be taken away; its lock is the caller's until that is done."""

    folder: Path
    trash: Path | None
    """Where it is moved to, on its own disk; None: it cannot be moved, and is emptied in place,
    its manifest first, so that what a crash leaves of it is not taken for an artifact."""

    def take_away(self) -> None:
        """In one step: from now on there is no artifact. Raises: OSError."""
        if self.trash is not None:
            files.rename_durably(self.folder, self.trash)
        else:
            (self.folder / MANIFEST).unlink(missing_ok=True)
            files.sync_directory(self.folder)

    def untouched(self) -> bool:
        """Whether `take_away` failed before it did anything."""
        return os.path.lexists(self.folder if self.trash else self.folder / MANIFEST)

    def delete(self) -> None:
        """Free the space of what was taken away. Raises: OSError."""
        rest = self.trash or self.folder
        if rest.is_symlink():  # what it points at is not the registry's
            rest.unlink()
        else:
            staging.discard(rest)


def prepare(folder: Path) -> Removal:
    """Find out how the directory of an artifact can be taken away; it is not changed.

    Raises:
        OSError: it cannot be.
        RunFailed: a link on the way points at nothing.
    """
    name = folder.parent
    root = staging.root_of(folder.parents[3], cast(Kind, name.parent.name), name.name)
    if not folder.is_symlink():
        _check_can_be_emptied(folder)
    files.make_directory(root)
    trash = root / f"trash-{secrets.token_hex(8)}"
    return Removal(folder, trash if _can_move(folder, root) else None)


def throw_away(folder: Path) -> None:
    """Take a directory away and delete it. The caller holds its lock. Raises: OSError."""
    removal = prepare(folder)
    removal.take_away()
    removal.delete()


def explain(error: OSError, what: str, folder: Path) -> Bc2Error:
    """Why `what` cannot be removed, and what to do."""
    if error.errno in _FULL:
        return from_os_error(error, f"removing {what}")
    reason = (error.strerror or str(error)).lower()
    return RunFailed(
        f"{what} cannot be removed: {reason}",
        where=where_of(error, folder),
        todo=_TODO.get(error.errno or 0),
    )


def where_of(error: OSError, folder: Path) -> str:
    """The path that an error names, or `folder`: rmtree names files by their last part alone."""
    named = str(error.filename or "")
    return named if os.path.isabs(named) else str(folder)


def _check_can_be_emptied(folder: Path) -> None:
    """Raises: OSError if a directory in it may not be written, or is another disk's."""
    mounted = set(_mount_points())
    for path, _, _ in os.walk(folder, onerror=_raise):
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if os.path.realpath(path) in mounted:
            # Deleting would go on into it.
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)


def _raise(error: OSError) -> None:
    raise error


def _mount_points() -> Iterator[str]:
    """Where something is mounted, as this process sees it; nothing where the kernel tells none."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        # Spaces and the like are octal escapes.
        octal = re.compile(rb"\\([0-7]{3})")
        yield os.fsdecode(octal.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4]))


def _can_move(folder: Path, root: Path) -> bool:
    """Whether `folder` can be renamed into `root`; asked by a rename that cannot be done.

    Onto a directory that is not empty: every other reason to refuse is told first.

    Returns:
        False for a directory that can be emptied, but not be moved (of an overlay's lower layer).

    Raises:
        OSError: it can neither be moved nor emptied.
    """
    try:
        with ExitStack() as lock:
            full = staging.create(root, lock)
            try:
                (full / "full").touch()
                os.rename(folder, full)
            finally:
                staging.discard(full)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        # On a full disk there is no asking, and some (CIFS) say this where they can.
        unclear = error.errno in _NO_RIGHT and _may_write(folder)
        if not (unclear or error.errno in (*_COULD_MOVE, *_FULL)):
            raise OSError(error.errno, error.strerror, str(folder)) from error
    return True


def _may_write(folder: Path) -> bool:
    return all(os.access(path, os.W_OK | os.X_OK) for path in (folder, folder.parent))
