"""Writing aside: the directory in which an artifact is made before it exists.

Its owner holds a flock on the directory itself, and the lock follows the inode
through the rename that publishes it. So whoever can take the lock knows that no
living process is making, publishing or using what is inside.

It is on the disk that the artifact is going to, which a link in the home may make
another one than the home's: a rename works on one disk only.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2 import files
from bc2.console import warn
from bc2.errors import Bc2Error, CallFailed, ResourceError
from bc2.registry.artifact import Artifact
from bc2.registry.draft import Draft, Kind

if TYPE_CHECKING:
    from bc2.registry.manifest import FileEntry

    Publish = Callable[[Path, Draft, Mapping[str, Any], Iterable[FileEntry]], Artifact]

#: Where to write aside, in the directory of a kind or name that is on another disk than
#: ``staging``. No kind, name or digest begins with a dot.
ELSEWHERE = ".staging"


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


def root_of(home: Path, kind: Kind, name: str) -> Path:
    """The directory in which to write aside what is to be renamed to ``artifacts/KIND/NAME``.

    Raises:
        RunFailed: a link on the way points at nothing.
    """
    folder = home / "artifacts" / kind / name
    files.check_links(folder)
    disk = _disk(folder)
    for root in (home / "staging", folder.parent / ELSEWHERE):
        if files.dangling_link(root) is None and _disk(root) == disk:
            return root
    return folder / ELSEWHERE


def _disk(path: Path) -> tuple[int, str]:
    """The file system and the mount that `path` is on, or will be when it is made.

    Both: parts of one mount may be file systems of their own (btrfs), and one file system
    may be mounted twice; a rename crosses neither.
    """
    fd = os.open(existing(path), os.O_PATH)
    try:
        return os.fstat(fd).st_dev, _mount(fd)
    finally:
        os.close(fd)


def _mount(fd: int) -> str:
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    except OSError:  # no /proc: the device has to do
        return ""
    return next((line for line in lines if line.startswith("mnt_id")), "")


def existing(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next(at for at in (path, *path.parents) if at.exists())


def roots(home: Path) -> list[Path]:
    """Every directory of the home in which something may be written aside."""
    artifacts = home / "artifacts"
    elsewhere = (artifacts.glob(f"{above}/{ELSEWHERE}") for above in ("*", "*/*"))
    return [home / "staging", *(root for found in elsewhere for root in sorted(found))]


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


@contextmanager
def blaming(aside: Path, instead: str) -> Iterator[None]:
    """Have errors name `instead` for `aside`, which is gone by the time they are read.

    A disk that is full or fails is named by the directory of `aside`, which stays.
    """
    try:
        yield
    except Bc2Error as error:
        of_disk = isinstance(error, ResourceError) or isinstance(error.__cause__, CallFailed)
        lasting = str(aside.parent) if of_disk else instead
        if error.where:
            error.where = error.where.replace(str(aside), lasting)
        raise


def try_publish(home: Path, kind: Kind, name: str) -> None:
    """Write aside, sync, rename to where an artifact would go, sync; and remove it all again.

    Raises:
        OSError: a publish would fail so.
        RunFailed: a link on the way points at nothing.
    """
    with ExitStack() as lock:
        path = create(root_of(home, kind, name), lock)
        # Locked as it moves, like an artifact: if this process dies, a sweep removes it.
        placed = existing(home / "artifacts" / kind / name) / f"{ELSEWHERE}-{path.name}"
        try:
            files.write_durably(path / "trial", b"whether publishing works\n")
            files.sync_directory(path)
            files.rename_durably(path, placed)
        finally:
            discard(path)
            discard(placed)


def discard(path: Path) -> None:
    """Remove a directory that nobody else can see or hold, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def abandoned(home: Path) -> list[Path]:
    """What was written aside in a home by processes that are dead, without touching it."""
    return [path for path in _aside(home) if _said(path, lambda _: None)]


def sweep(home: Path) -> list[Path]:
    """Remove what was written aside by processes that are dead; return it.

    What cannot be removed (it is another user's) is said, and left.
    """
    return [path for path in _aside(home) if _said(path, discard)]


def sweep_one(path: Path) -> bool:
    """Remove one directory written aside if its owner is dead; say whether it was."""
    return _if_dead(path, discard)


def _aside(home: Path) -> list[Path]:
    """Every directory written aside in a home, and every trial of `try_publish`."""
    artifacts = home / "artifacts"
    patterns = [(home, ""), (artifacts, ""), (artifacts, "*/"), (artifacts, "*/*/")]
    trials = [path for at, above in patterns for path in at.glob(f"{above}{ELSEWHERE}-*")]
    inside = [path for root in roots(home) if root.is_dir() for path in root.iterdir()]
    return sorted(path for path in (*inside, *trials) if path.is_dir())


def _said(path: Path, act: Callable[[Path], None]) -> bool:
    try:
        return _if_dead(path, act)
    except OSError as error:
        warn(f"left {path}: {(error.strerror or str(error)).lower()}")
        return False


def _if_dead(path: Path, act: Callable[[Path], None]) -> bool:
    try:
        with files.lock_directory(path) as held:
            if held:
                act(path)
            return held
    except FileNotFoundError:  # its owner was quicker
        return False
