"""Durable files: the one door through which bc2 writes what must survive a crash.

A file is complete and on disk before its final name exists: write aside, fsync,
rename, fsync the directory. `tests/registry` replays the calls made here with
unsynced writes dropped, so nothing may publish by another way.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

#: A name in a directory may hold 255 bytes, and temporary names beside it are a little longer.
LONGEST_NAME = 200

CHUNK = 1 << 20

#: Direct I/O writes multiples of this, bytes: no disk has larger sectors, no page is shared.
BLOCK = max(4096, mmap.PAGESIZE)

#: Bytes that are gathered in memory and written at once; a multiple of `BLOCK`.
ROOM = 4 << 20

#: Fewer bytes go through the page cache: each direct write waits for the disk.
LEAST_DIRECT = 256 << 10


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


class InPlace:
    """Writes runs of bytes to where they belong: see `writing_in_place`."""

    def __init__(self, fd: int, direct: int | None):
        # Here, since most commands need none. Its copies let go of the GIL; bytes' do not.
        import numpy as np

        self._fd = fd
        self._direct = direct
        self._room: Bytes = np.frombuffer(mmap.mmap(-1, ROOM), np.uint8)  # begins with a page

    def run(
        self,
        offset: int,
        pieces: Iterable[Bytes],
        seen: Callable[[memoryview], object] | None = None,
    ) -> None:
        """Write pieces one after another from `offset` on.

        Args:
            seen: told of all bytes in their order, before they are written.

        Raises:
            OSError: the disk is full, or fails.
        """
        for at, data in self._gathered(offset, pieces):
            if seen is not None:
                seen(data)
            self._put(at, data)

    def _gathered(self, offset: int, pieces: Iterable[Bytes]) -> Iterator[tuple[int, memoryview]]:
        """Full rooms and the rest, each with its offset; as far into a block as in the file."""
        begin = end = offset % BLOCK
        base = offset - begin
        for piece in pieces:
            done = 0
            while done < len(piece):
                some = piece[done : done + ROOM - end]
                self._room[end : end + len(some)] = some
                done, end = done + len(some), end + len(some)
                if end == ROOM:
                    yield base + begin, self._room.data[begin:end]
                    base, begin, end = base + ROOM, 0, 0
        if begin < end:
            yield base + begin, self._room.data[begin:end]

    def _put(self, at: int, data: memoryview) -> None:
        first = min(-at % BLOCK, len(data))
        last = len(data) - (len(data) - first) % BLOCK
        if self._direct is None or last - first < LEAST_DIRECT:
            return write_at(self._fd, data, at)
        write_at(self._fd, data[:first], at)
        done = first + self._put_blocks(self._direct, at + first, data[first:last])
        # What direct I/O left over: if the disk failed there, it does so again.
        write_at(self._fd, data[done:], at + done)

    def _put_blocks(self, direct: int, at: int, data: memoryview) -> int:
        """Bytes that were written past the page cache; never again after a refusal."""
        try:
            return os.pwrite(direct, data, at)
        except OSError as error:
            if error.errno not in _NOT_DIRECT:
                raise
            self._direct = None
            return 0


#: What a file system says that has no direct I/O, or wants larger blocks.
_NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)


@contextmanager
def writing_in_place(path: Path) -> Iterator[InPlace]:
    """Write into a file that has its length already, and fsync it at the end.

    The whole blocks of a run go to the disk without a copy in the page cache, which costs
    a core several times as much. The rest of it, and all where there is no direct I/O, is
    written as usual. Others may write other bytes meanwhile, but not through a mapping:
    no byte of a block that lies within a run is theirs, so neither is the block's page.

    Raises:
        OSError: the disk is full, or fails.
    """
    with ExitStack() as held:
        fd = _opened(path, os.O_WRONLY, held)
        try:
            direct = _opened(path, os.O_WRONLY | os.O_DIRECT, held)
        except OSError as error:
            if error.errno not in _NOT_DIRECT:
                raise
            direct = None
        yield InPlace(fd, direct)
        os.fsync(fd)


def _opened(path: Path, flags: int, held: ExitStack) -> int:
    fd = os.open(path, flags)
    held.callback(os.close, fd)
    return fd


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
