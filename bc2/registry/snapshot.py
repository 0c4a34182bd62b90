"""Reading an index that may not be written: a copy of it in a temporary folder.

SQLite in WAL mode writes beside its file to read it, which a read-only mount or another
user's folder forbids; and to take the file alone would miss what is in the WAL. So both are
copied, and the copy is opened. Whoever may write the home may do so meanwhile: a copy counts
if a second look finds the same bytes, which then were all there at one moment, between the
two. What is in files at one moment is what SQLite recovers from after a crash.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bc2.console import note
from bc2.errors import RunFailed, from_os_error
from bc2.files import why_not_writable
from bc2.registry import index as ix

#: How long to try for a copy while others write, and how long between two tries, seconds.
TRY_S = 20.0
_PAUSE_S = 0.02

#: What SQLite keeps beside a database in WAL mode. The shared memory is made of the WAL.
_WAL = "-wal"
_BESIDE = (_WAL, "-shm")

_Files = tuple[bytes | None, bytes | None]


def why_not_ours(database: Path) -> str | None:
    """Why SQLite cannot work on a database where it is; None if it can."""
    beside = (database.with_name(database.name + suffix) for suffix in _BESIDE)
    there = [path for path in (database, *beside) if path.exists()]
    reasons = (why_not_writable(path) for path in (database.parent, *there))
    return next((reason for reason in reasons if reason), None)


class Snapshots:
    """Copies of one home's index, each good until the index changes.

    Args:
        database: SQLite's file, which may be missing.
        place: what cannot be written to, for messages.
        reconcile: fills an empty index from the manifests; returns how many it found.

    Raises:
        RunFailed: there is no temporary folder.
    """

    def __init__(self, database: Path, place: Path, reconcile: Callable[[ix.Index], int]):
        self._database = database
        self._place = place
        self._reconcile = reconcile
        self._folder = _temporary_folder()
        self._seen: object = None
        self._index: ix.Index | None = None

    def index(self, reason: str) -> ix.Index:
        """The index as it is now, to read only.

        Args:
            reason: why it cannot be written, for messages.

        Raises:
            RunFailed: others write to it all the time.
        """
        seen = self._signature()
        if self._index is None or seen != self._seen:
            self._index, self._seen = self._copied(), seen
            self._index.upgrade()
            self._index.refuse_writing(reason, self._place)
        return self._index

    def _signature(self) -> object:
        found = []
        for path in (self._database, self._database.with_name(self._database.name + _WAL)):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return found

    def _copied(self) -> ix.Index:
        for old in Path(self._folder.name).iterdir():
            old.unlink()
        copy = Path(self._folder.name) / self._database.name
        content, wal = self._at_one_moment()
        if content is None:
            index = ix.Index.at_file(copy, create=True)
            index.create()
            found = self._reconcile(index)
            note(f"the index is missing and cannot be made: {found} manifests were read instead")
            return index
        copy.write_bytes(content)
        if wal:
            copy.with_name(copy.name + _WAL).write_bytes(wal)
        return ix.Index.at_file(copy)

    def _at_one_moment(self) -> _Files:
        until = time.monotonic() + TRY_S
        before = self._read()
        while (after := self._read()) != before:
            if time.monotonic() > until:
                raise RunFailed(
                    f"the index was written to all the time, for {TRY_S:.0f} s",
                    where=str(self._database),
                    todo="run the same again",
                )
            before = after
            time.sleep(_PAUSE_S)
        return after

    def _read(self) -> _Files:
        return _content(self._database), _content(
            self._database.with_name(self._database.name + _WAL)
        )


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="bc2-index-", ignore_cleanup_errors=True)
    except OSError as error:
        raise RunFailed(
            f"the index of a home that cannot be written is read from a copy, and there is no "
            f"place for one: {error.strerror}",
            todo="set TMPDIR to a directory you may write to",
        ) from error


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, "reading the index") from error
