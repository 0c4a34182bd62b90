"""The files below a folder, and those inside of zip archives there, which are never unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bc2.errors import DataError, from_os_error
from bc2.harness.rows import csv_records, kind_of, rows_in
from bc2.streams import MAX_DOCUMENT_BYTES, first_line, open_bytes

#: Folders below the given one that are looked into.
MAX_DEPTH = 5

#: Files that are looked at: more are no folder of benchmarks.
MAX_FILES = 100_000

#: Bytes of one file, unpacked. The largest known, MedMCQA's train, has 140 MB.
MAX_FILE_BYTES = MAX_DOCUMENT_BYTES


@dataclass(frozen=True)
class ReleaseFile:
    """A file of a release, or a member of its archive."""

    name: str
    """Relative to the folder; of a member ``ARCHIVE.zip/MEMBER``."""
    path: Path
    """The file or the archive."""
    member: str | None = None

    @property
    def where(self) -> str:
        """The place, for messages."""
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"

    @property
    def stored(self) -> str:
        """The name of the file itself: of a member that of its archive."""
        return self.name.removesuffix(f"/{self.member}") if self.member else self.name

    def contents(self) -> bytes:
        """All bytes, decompressed.

        Raises:
            DataError: missing, damaged, too large, or text that is not UTF-8.
        """
        if self.member is None:
            with open_bytes(self.path) as stream:
                data = self._all_of(stream)
        else:
            data = self._member_contents(self.member)
        if kind_of(self.name) != ".parquet":
            self._check_utf8(data)
        return data

    def rows(self, key: str | None = None) -> Iterator[tuple[int, Any]]:
        """The number (from 1) and contents of each row: see `rows.rows_in`."""
        stream = io.BytesIO(self.contents())
        try:
            yield from rows_in(stream, kind_of(self.name), self.where, key)
        except DataError as bad:  # it says what to set in a recipe
            raise DataError(bad.what, where=bad.where, todo="fetch the release again") from bad

    def records(self) -> Iterator[list[str]]:
        """The records of a CSV file, its header too, without empty lines."""
        return filter(None, csv_records(io.BytesIO(self.contents()), self.where))

    def _member_contents(self, member: str) -> bytes:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(member) as stream:
                zipped = member.endswith(".gz")
                return self._all_of(gzip.GzipFile(fileobj=stream) if zipped else stream)
        # RuntimeError: it has a password; NotImplementedError: an unusual compression.
        except (
            zipfile.BadZipFile,
            gzip.BadGzipFile,
            zlib.error,
            RuntimeError,
            NotImplementedError,
            EOFError,
        ) as error:
            raise _damaged(error, self.where) from error

    def _all_of(self, stream: Any) -> bytes:
        data: bytes = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise DataError(
                f"this file is larger than {MAX_FILE_BYTES:,} bytes, which no benchmark's is",
                where=self.where,
                todo="fetch the release again",
            )
        return data

    def _check_utf8(self, data: bytes) -> None:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"this file is not UTF-8: byte {error.start} ({error.reason})",
                where=f"{self.where}:{line}",
                todo="fetch the release again, or convert the file: iconv -f GB18030 -t UTF-8",
            ) from error


def files_below(folder: Path, front: str, archives: re.Pattern[str]) -> list[ReleaseFile]:
    """The files of a folder, sorted by name, and the members of the archives in it.

    Args:
        front: the folder's name.
        archives: searched in ``FRONT/NAME`` of an archive: what is not found is not opened.

    Raises:
        RunFailed: a folder in it cannot be read.
        DataError: it holds more files than any folder of benchmarks, or an archive is damaged.
    """
    found: list[ReleaseFile] = []
    for path in _paths(folder):
        name = path.relative_to(folder).as_posix()
        found.append(ReleaseFile(name, path))
        if path.suffix.lower() == ".zip" and archives.search(f"{front}/{name}"):
            found += (ReleaseFile(f"{name}/{member}", path, member) for member in _members(path))
        if len(found) > MAX_FILES:
            raise DataError(
                f"more than {MAX_FILES:,} files",
                where=str(folder),
                todo="give the folder that holds the benchmarks alone",
            )
    return sorted(found, key=lambda file: file.name)


def sha256_and_size(path: Path) -> tuple[str, int]:
    """Hex SHA-256 and bytes of a file as it is stored."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()


def _paths(folder: Path) -> Iterator[Path]:
    """The files of a folder down to `MAX_DEPTH`; hidden folders are not looked into."""

    def stop(error: OSError) -> None:
        raise from_os_error(error, "looking for benchmarks")

    for at, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        depth = len(Path(at).relative_to(folder).parts)
        folders[:] = [
            name for name in folders if depth < MAX_DEPTH and not name.startswith((".", "__"))
        ]
        yield from (Path(at) / name for name in names if not name.startswith("."))


def _members(path: Path) -> Iterator[str]:
    """The files in an archive. Names are only compared, so one with .. reaches nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir() and "__MACOSX" not in info.filename:
                    yield info.filename
    except zipfile.BadZipFile as error:
        raise _damaged(error, str(path)) from error


def _damaged(error: Exception, where: str) -> DataError:
    return DataError(
        f"this archive is damaged: {first_line(error)}", where=where, todo="fetch it again"
    )
