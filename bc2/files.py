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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.console import warn
from bc2.errors import CallFailed, RunFailed

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


def sha256_file(path: Path, seen: Callable[[int], object] | None = None) -> str:
    """Hex SHA-256 of a file's bytes, read once in chunks of 1 MiB.

    Args:
        seen: told how many bytes each chunk had; what it raises ends the reading.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            if seen is not None:
                seen(len(chunk))
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
        sync_open(fd, path)


def _opened(path: Path, flags: int, held: ExitStack) -> int:
    fd = os.open(path, flags)
    held.callback(os.close, fd)
    return fd


def sync_file(path: Path) -> None:
    """fsync a file that something else wrote."""
    fd = os.open(path, os.O_RDONLY)
    try:
        sync_open(fd, path)
    finally:
        os.close(fd)


def sync_open(fd: int, path: Path) -> None:
    """fsync the open file of `path`. Raises: CallFailed, or OSError if the disk is full."""
    try:
        os.fsync(fd)
    except OSError as error:
        # A full disk and a quota say enough; `from_os_error` has an exit code for them.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise CallFailed(
            error, "fsync", path,
            meaning="what was written may not be on the disk, and counts as not written",
            todo="look at the disk; or set BC2_HOME to a directory on another file system",
        ) from error  # fmt: skip


#: What a file system says that cannot sync directories, as CIFS and some of FUSE.
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


def sync_directory(path: Path) -> None:
    """fsync a directory, so that the names in it are on disk.

    Where the file system cannot, this is said once, and all else goes on.

    Raises:
        OSError: the disk is full, or fails.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_open(fd, path)
    except CallFailed as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
        warn_once(
            "directories",
            f"the file system of {path} cannot sync directories (fsync: "
            f"{str(error.strerror).lower()}): after a power cut, files that were published last "
            "may be missing; run `bc2 registry verify` then",
        )
    finally:
        os.close(fd)


_warned: set[str] = set()


def warn_once(what: str, message: str) -> None:
    """Warn of something that every call would find again, once in a process."""
    if what not in _warned:
        _warned.add(what)
        warn(message)


def make_directory(path: Path) -> None:
    """mkdir -p whose new names are on disk when it returns.

    Raises:
        RunFailed: a link on the way points at nothing.
    """
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            check_links(folder)
            raise
        sync_directory(folder.parent)


def dangling_link(path: Path) -> Path | None:
    """The link on the way to `path` (or `path` itself) that points at nothing, if there is one."""
    return next((at for at in (path, *path.parents) if at.is_symlink() and not at.exists()), None)


def check_links(path: Path) -> None:
    """Raises: RunFailed if a link on the way to `path` points at nothing."""
    link = dangling_link(path)
    if link is not None:
        raise RunFailed(
            f"a link points at {os.readlink(link)}, and nothing is there",
            where=str(link),
            todo="mount that disk, make that directory, or remove the link",
        )


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and fsync it. Its name is not synced: see `sync_directory`."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        sync_open(stream.fileno(), path)


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file's contents atomically: a reader sees the old or the new bytes."""
    aside = _aside(path)
    try:
        write_durably(aside, data)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def check_replaceable(path: Path) -> None:
    """See that `replace_durably` could write a file now. Raises: OSError if it could not."""
    aside = _aside(path)
    aside.touch(exist_ok=False)
    aside.unlink()


def _aside(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


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
        CallFailed: the file system has no flock.
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
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and error.errno in NO_LOCKS:
                raise no_lock(error, "flock", path) from error
            raise
        os.close(fd)


#: What a file system says that has no locks: Lustre without ``-o flock``, NFS without a lock
#: daemon, some of FUSE.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)


def no_lock(error: OSError, call: str, path: Path) -> CallFailed:
    """What to raise where `call` finds that the file system of `path` has no locks."""
    return CallFailed(
        error, call, path,
        meaning="without locks two processes may write the same, and gc may remove what is in use",
        todo="mount the file system with locks (Lustre: -o flock; NFS: with its lock daemon), or "
        "set BC2_HOME and BC2_CACHE to directories on another one",
    )  # fmt: skip


@contextmanager
def keep_directory(path: Path) -> Iterator[None]:
    """Hold a shared lock on a directory that is read, so that nobody removes it meanwhile.

    Where the file system has no locks this is said once, and reading goes on: whoever removes
    the directory needs the lock, and a reader that meets a missing file says so.

    Raises:
        FileNotFoundError: there is no such directory (any more).
    """
    with ExitStack() as held:
        try:
            held.enter_context(lock_directory(path, shared=True, wait=True))
        except CallFailed as error:
            warn_once(
                "locks",
                f"the file system of {path} has no locks ({error.call}: "
                f"{str(error.strerror).lower()}): what is read is not kept from being removed",
            )
        yield


def why_not_writable(path: Path) -> str | None:
    """Why a file or directory may not be written to; None if it may.

    Of one that does not exist: whether it may be made in the nearest directory that does.
    """
    # It is not opened: closing it would drop the locks that SQLite has on it in this process.
    refusals = 0
    while True:
        found = path
        while not found.exists():
            found = found.parent
        mode = os.W_OK | os.X_OK if found.is_dir() else os.W_OK
        refused = not _may(found, mode)
        # What SQLite has beside its file comes and goes: then all is looked at again.
        with suppress(FileNotFoundError):
            read_only = os.statvfs(found).f_flag & os.ST_RDONLY
            if not refused or _may(found, mode):
                return None
            refusals += found.exists()
            if refusals == 5:
                return "read-only file system" if read_only else "permission denied"


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
