"""Writing aside: the directory in which an artifact is made before it exists.

Its owner holds a flock on the directory itself, and the lock follows the inode
through the rename that publishes it. So whoever can take the lock knows that no
living process is making, publishing or using what is inside.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2 import files
from bc2.registry.artifact import Artifact
from bc2.registry.draft import Draft

if TYPE_CHECKING:
    from bc2.registry.manifest import FileEntry

    Publish = Callable[[Path, Draft, Mapping[str, Any], Iterable[FileEntry]], Artifact]


class Staged:
    """An artifact being made: write its files below `path`, then `publish`."""

    def __init__(self, path: Path, draft: Draft, publish: Publish, lock: ExitStack):
        self.path = path
        self.draft = draft
        self._publish = publish
        self._lock = lock
        self._published: Artifact | None = None

    def publish(
        self, facts: Mapping[str, Any] | None = None, *, known: Iterable[FileEntry] = ()
    ) -> Artifact:
        """Hash, sync and register what is below `path`, all or nothing; then it is read-only.

        Args:
            facts: more to record, over the draft's facts.
            known: files that are not read: their digests were taken as they were written,
                and are of what was to be written. Their sizes are checked.

        Returns:
            The artifact; the one already registered, if it is the same to the byte.

        Raises:
            DataError: the payload is empty, or holds links or special files.
            IntegrityError: a file of `known` has not the size that was written.
            RunFailed: a parent is not registered (any more).
            ResourceError: the disk is full; nothing is left behind.
        """
        if self._published is None:
            self._published = self._publish(self.path, self.draft, facts or {}, known)
            self._lock.close()
        return self._published

    def close(self) -> None:
        """Remove what was not published, and let go of the lock."""
        if self._published is None:
            discard(self.path)
        self._lock.close()


def create(root: Path, lock: ExitStack) -> Path:
    """A new empty directory below `root`, held by an exclusive flock in `lock`."""
    files.make_directory(root)
    while True:
        path = root / f"{os.getpid()}-{secrets.token_hex(8)}"
        path.mkdir()
        try:
            lock.enter_context(files.lock_directory(path, wait=True))
        except FileNotFoundError:  # a sweep came between mkdir and flock
            continue
        return path


def discard(path: Path) -> None:
    """Remove a directory that nobody else can see or hold, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def throw_away(folder: Path, root: Path) -> None:
    """Take a directory out of sight in one step, then remove it.

    The caller holds its lock, which keeps `sweep` off until this is done.
    """
    trash = root / f"trash-{secrets.token_hex(8)}"
    files.make_directory(root)
    files.rename_durably(folder, trash)
    discard(trash)


def abandoned(root: Path) -> list[Path]:
    """The directories below `root` whose owner is dead, without touching them."""
    return [path for path in _directories(root) if _if_dead(path, lambda _: None)]


def sweep(root: Path) -> list[Path]:
    """Remove the directories below `root` whose owner is dead; return them."""
    return [path for path in _directories(root) if sweep_one(path)]


def sweep_one(path: Path) -> bool:
    """Remove one staging directory if its owner is dead; say whether it was."""
    return _if_dead(path, discard)


def _directories(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _if_dead(path: Path, act: Callable[[Path], None]) -> bool:
    try:
        with files.lock_directory(path) as held:
            if held:
                act(path)
            return held
    except FileNotFoundError:  # its owner was quicker
        return False
