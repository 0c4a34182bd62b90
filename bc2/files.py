"""Durable files: the one door through which bc2 writes what must survive a crash.

A file is complete and on disk before its final name exists: write aside, fsync,
rename, fsync the directory. `tests/registry` replays the calls made here with
unsynced writes dropped, so nothing may publish by another way.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read once in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Write all bytes from `offset` on.

    Raises:
        OSError: the disk is full, or fails.
    """
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def sync_file(path: Path) -> None:
    """fsync a file that something else wrote."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """fsync a directory, so that the names in it are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """mkdir -p whose new names are on disk when it returns."""
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_directory(folder.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and fsync it. Its name is not synced: see `sync_directory`."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file's contents atomically: a reader sees the old or the new bytes."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(aside, data)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one file system; both directories are on disk when it returns."""
    os.rename(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def sync_tree(root: Path) -> None:
    """fsync every file and directory below `root`, deepest first, then `root`."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            sync_file(Path(folder) / name)
        sync_directory(Path(folder))


@contextmanager
def lock_directory(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """flock a directory; the kernel drops it when the process dies, however it dies.

    The lock is on the inode, so it stays with a directory that is renamed. It is taken
    on the directory that `path` names when it is taken, not on one just moved away.

    Yields:
        True if the lock is held, False if another process has it (never when `wait`).

    Raises:
        FileNotFoundError: there is no such directory (any more).
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fd = _flock(path, how if wait else how | fcntl.LOCK_NB)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def _flock(path: Path, how: int) -> int | None:
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, how)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
