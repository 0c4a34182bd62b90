"""The files of an artifact: measured once when it is published, proved ever after."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from bc2.errors import DataError, IntegrityError, from_os_error
from bc2.files import CHUNK, sha256_file
from bc2.registry.manifest import FILENAME, FileEntry, Manifest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_RESTORE = (
    "import a good copy of the artifact, or make it again: its command with --fresh replaces it"
)


def paths(root: Path) -> list[str]:
    """Every file below `root`, as sorted relative paths; the manifest is not one of them.

    Raises:
        DataError: something is neither a file nor a directory (a link, a pipe), or its
            name is not UTF-8.
    """
    return sorted(_walk(root, ""))


def _walk(root: Path, below: str) -> Iterator[str]:
    with os.scandir(root / below) as entries:
        for entry in entries:
            relpath = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, relpath)
            elif not entry.is_file(follow_symlinks=False):
                raise DataError(
                    "an artifact holds plain files and directories only",
                    where=ascii(str(root / relpath)),
                    todo="replace the link or special file by what it stands for",
                )
            elif not _is_utf8(relpath):
                raise DataError("a file name is not UTF-8", where=ascii(str(root / relpath)))
            elif relpath != FILENAME:
                yield relpath


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def measure(root: Path, known: Iterable[FileEntry] = ()) -> tuple[FileEntry, ...]:
    """Path, size in bytes and SHA-256 of every file below `root`, by path.

    Args:
        known: files whose digests their writer took as it wrote; these are not read.

    Raises:
        IntegrityError: a known file is missing, or has not the size that was written.
    """
    given = {entry.path: entry for entry in known}
    for entry in given.values():
        _check_written(root, entry)
    return tuple(given.get(path) or _entry(root, path) for path in paths(root))


def _check_written(root: Path, entry: FileEntry) -> None:
    path = root / entry.path
    found = f"has {path.stat().st_size:,} bytes" if path.is_file() else "is missing"
    if found != f"has {entry.size:,} bytes":
        raise IntegrityError(
            f"a file {found}, and {entry.size:,} bytes were written",
            where=str(path),
            todo="run the same again; if it comes back, look at the disk",
        )


def _entry(root: Path, path: str) -> FileEntry:
    file = root / path
    return FileEntry(path=path, size=file.stat().st_size, sha256=sha256_file(file))


def check_size(root: Path, entry: FileEntry) -> Path:
    """The path of `entry` below `root`, if a plain file of its size is there.

    Raises:
        IntegrityError: it is not; names the file.
    """
    path = root / entry.path
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise IntegrityError("a file is missing", where=str(path), todo=_RESTORE) from None
    if not stat.S_ISREG(found.st_mode):
        raise IntegrityError("a file was replaced by a link", where=str(path), todo=_RESTORE)
    if found.st_size != entry.size:
        raise IntegrityError(
            f"a file has {found.st_size:,} bytes, and its manifest says {entry.size:,}",
            where=str(path),
            todo=_RESTORE,
        )
    return path


def check_file(root: Path, entry: FileEntry, seen: Callable[[int], object] | None = None) -> Path:
    """As `check_size`, and its bytes have the SHA-256 of `entry`.

    Args:
        seen: told how many bytes were read, again and again; what it raises ends the reading.
    """
    path = check_size(root, entry)
    try:
        found = sha256_file(path, seen)
    except OSError as error:
        raise from_os_error(error, "reading an artifact") from error
    _check_digest(path, found, entry)
    return path


def _check_digest(path: Path, found: str, entry: FileEntry) -> None:
    if found != entry.sha256:
        raise IntegrityError("a file does not match its SHA-256", where=str(path), todo=_RESTORE)


class DigestingReader(RawIOBase):
    """A file's bytes from front to back, each digested as it passes: see `reading`."""

    def __init__(self, raw: FileIO):
        self._raw = raw
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        try:
            size: int = self._raw.readinto(view)
        except OSError as error:
            raise from_os_error(error, "reading an artifact") from error
        self._sha256.update(view[:size])
        return size

    def digest_of_all(self) -> str:
        """Hex SHA-256 of the whole file, what was not read of it until now included."""
        while self.read(CHUNK):
            pass
        return self._sha256.hexdigest()


@contextmanager
def reading(root: Path, entry: FileEntry) -> Iterator[DigestingReader]:
    """Open a file to read it once, from front to back: it is proved when the context ends.

    What was read before may not be used until then. Bytes that are left are read at the end.
    An IntegrityError of the reader (it finds no sense in the bytes) becomes that of the file
    if its bytes are not those of `entry`.

    Raises:
        IntegrityError: size or SHA-256 are not those of `entry`; names the file.
    """
    path = check_size(root, entry)
    try:
        raw = path.open("rb", buffering=0)
    except OSError as error:
        raise from_os_error(error, "reading an artifact") from error
    with raw:
        reader = DigestingReader(raw)
        try:
            yield reader
        except IntegrityError:
            _check_digest(path, reader.digest_of_all(), entry)
            raise
        _check_digest(path, reader.digest_of_all(), entry)


def check_sizes(root: Path, manifest: Manifest) -> None:
    """Raises: IntegrityError unless every file is there with its size (bytes are not read)."""
    for entry in manifest.files:
        check_size(root, entry)


def check(root: Path, manifest: Manifest) -> None:
    """Raises: IntegrityError unless `root` holds the files of `manifest`, intact, and no others."""
    for entry in manifest.files:
        check_file(root, entry)
    check_no_others(root, manifest)


def check_no_others(root: Path, manifest: Manifest) -> None:
    """Raises: IntegrityError if `root` holds a file that is not one of `manifest`."""
    known = {entry.path for entry in manifest.files}
    for path in paths(root):
        if path not in known:
            raise IntegrityError(
                "a file is not in the manifest",
                where=str(root / path),
                todo="remove that file: an artifact does not change after it is published",
            )
