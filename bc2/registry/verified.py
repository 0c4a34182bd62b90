"""Which files of an artifact were found intact, so that what has not changed is not read again.

Terabytes of token shards take hours to read, at each start of a run. A file counts as unchanged
while the file system says the same of it as when it was read: size, times and inode.

    HOME/verified/DIGEST/PART.json

Of every artifact each process writes a part of its own, replaced as a whole; what is known is all
parts together. So processes need no lock, and none undoes what another one found. A part that is
damaged, or of another version, counts as nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bc2.console import warn
from bc2.files import make_directory, replace_durably, sha256_json, warn_once
from bc2.registry.manifest import FileEntry
from bc2.registry.payload import check_file

#: Below a home.
FOLDER = "verified"

#: Raised when parts are written another way.
_VERSION = 1

#: A file that changed less than so long before it was read is not remembered: a second change
#: within the same tick of the file system's clock (FAT: two seconds) would look like the first.
_SETTLED_NS = 3 * 10**9

#: How often a process that goes on reading writes what it found, seconds.
_SAVE_S = 60.0


class FileIdentity(NamedTuple):
    """What a file system says of a file; another content shows in it.

    The device is no part: machines that share a file system number it differently.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @property
    def changed_ns(self) -> int:
        """When it last changed; SMB and some of FUSE have no ctime of their own."""
        return max(self.mtime_ns, self.ctime_ns)

    @classmethod
    def of(cls, found: os.stat_result) -> FileIdentity:
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _look(path: Path) -> FileIdentity | None:
    """The identity of a file now; None if it cannot be opened."""
    # Opened, since NFS asks the server then, and may answer a stat from what it remembers.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return FileIdentity.of(os.fstat(fd))
    finally:
        os.close(fd)


class VerifiedFiles:
    """What is remembered of one artifact's files.

    It is a convenience: where it cannot be written this is said once, and files are read again.

    Args:
        home: of the registry.
        digest: of the artifact, 64 hex digits. It stands for the digests of the files.
    """

    def __init__(self, home: Path, digest: str):
        self.folder = home / FOLDER / digest
        self._own = self.folder / f"{secrets.token_hex(8)}.json"
        self._found: dict[str, FileIdentity] = {}
        self._behind_ns: int | None = None
        self._saved_at = time.monotonic()

    def unchanged(self, root: Path, entries: Iterable[FileEntry]) -> set[str]:
        """The paths of those files below `root` that are as they were when they were read."""
        known = self._known(self._parts())
        return {
            entry.path
            for entry in entries
            if (entry.path, *(_look(root / entry.path) or ())) in known
        }

    def check(self, root: Path, entry: FileEntry, seen: Callable[[int], object]) -> None:
        """Read a file below `root` and find it intact; remember it if it will not change unseen.

        Args:
            seen: told again and again how many bytes were read; what it raises ends the reading.

        Raises:
            IntegrityError: its size or SHA-256 is not the manifest's; names the file.
        """
        begun, before = self._now(), _look(root / entry.path)
        after = _look(check_file(root, entry, seen))
        if before is not None and before == after and before.changed_ns < begun - _SETTLED_NS:
            self._found[entry.path] = before
        if time.monotonic() - self._saved_at > _SAVE_S:
            self._save(self._found)

    @property
    def found(self) -> Mapping[str, FileIdentity]:
        """What `check` remembered, by path."""
        return self._found

    def keep(self, found: Mapping[str, FileIdentity]) -> None:
        """Write what all ranks found; it takes the place of the parts that there are."""
        if not found:
            return
        parts = self._parts()
        self._save(found, self._known(parts))
        for part in parts:
            if part != self._own and self._own.exists():
                part.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remember nothing any more: a file is damaged, or the artifact is gone."""
        try:
            shutil.rmtree(self.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            warn(
                f"{self.folder} cannot be removed ({(error.strerror or str(error)).lower()}): "
                "remove it by hand, or a run will take the files for intact"
            )

    def _now(self) -> int:
        """Nanoseconds by the local clock or the file system's, whichever is behind."""
        if self._behind_ns is None:
            self._behind_ns = min(0, self._file_clock() - time.time_ns())
        return time.time_ns() + self._behind_ns

    def _file_clock(self) -> int:
        """When a file that is written now was written, by the file system: a server has a clock
        of its own. Where none can be written nothing will be remembered, and 0 says so."""
        probe = self._own.with_suffix(".now")
        try:
            make_directory(self.folder)
            probe.touch(exist_ok=False)
            written = probe.stat().st_mtime_ns
            probe.unlink()
        except OSError as error:
            self._say(error)
            return 0
        return written

    def _save(self, found: Mapping[str, FileIdentity], known: Iterable[_Record] = ()) -> None:
        self._saved_at = time.monotonic()
        records = [record for record in known if record[0] not in found]
        records += [(path, *identity) for path, identity in found.items()]
        files = sorted(records)
        content = {"version": _VERSION, "files": files, "sha256": sha256_json(files)}
        try:
            make_directory(self.folder)
            replace_durably(self._own, json.dumps(content).encode())
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        warn_once(
            "verified",
            f"{self.folder.parent} cannot be written ({(error.strerror or str(error)).lower()}): "
            "the files of artifacts will be read again at the next start",
        )

    def _parts(self) -> list[Path]:
        with suppress(OSError):
            return [path for path in self.folder.iterdir() if path.suffix == ".json"]
        return []

    def _known(self, parts: Iterable[Path]) -> set[_Record]:
        return {record for part in parts for record in _records(part)}


#: The path of a file and its identity.
_Record = tuple[str, int, int, int, int]


def _records(part: Path) -> list[_Record]:
    """What a part says; nothing if it is gone, damaged, or of another version."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        content = json.loads(part.read_bytes())
        files = content["files"]
        if content["version"] == _VERSION and content["sha256"] == sha256_json(files):
            return [
                (str(path), int(size), int(mtime), int(ctime), int(inode))
                for path, size, mtime, ctime, inode in files
            ]
    return []
