"""Which files a source is, and the fingerprint of their contents that keys a corpus."""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bc2.data.documents import SourceFile
from bc2.data.source_config import OriginConfig, Sourced
from bc2.errors import DataError
from bc2.files import make_directory, replace_durably, sha256_file, why_not_writable
from bc2.streams import first_line, reading
from bc2.text_encoding import UTF8

FileLayout = Literal["text", "lines", "parquet"]

_SUFFIX = re.compile(r"\.(?:(txt)|(jsonl|ndjson|json))(?:\.gz|\.zst)?$|\.(parquet)$")

#: A file this young may still change without its timestamp changing (git's racy index).
_SETTLED_NS = 2_000_000_000


class InputFile(NamedTuple):
    """One input of a corpus or of chats, by content: part of its key."""

    source: str
    name: str
    size: int
    """Bytes; 0 for a dataset on the hub."""
    sha256: str
    """Hex SHA-256 of the file; ``git:COMMIT`` for a dataset on the hub; of a file of another file
    system what that knows a version of it by: ``etag:…``, or ``ukey:…`` if it has no such tag."""


def file_layout(name: str) -> FileLayout | None:
    """How a file holds its documents, by its suffix; None if bc2 cannot read it."""
    match = _SUFFIX.search(name)
    if match is None:
        return None
    return "text" if match[1] else "lines" if match[2] else "parquet"


def source_files(source: OriginConfig) -> list[SourceFile]:
    """The files of a path or environment source, sorted by name.

    Raises:
        DataError: nothing is there, nothing is left, or a file has an unknown suffix.
    """
    if source.environment is not None:
        found = source.environment_files()
    else:
        assert source.path is not None
        found = _files_at(os.path.expanduser(source.path))
    chosen = sorted(file for file in found if _chosen(file.name, source))
    if not chosen:
        raise DataError(
            f"source {source.name!r} has no files",
            where=source.path or source.environment,
            todo="check its path, include and exclude",
        )
    if source.environment is None:
        for file in chosen:
            _check_name(file)
            _check_kind(file, source)
    return chosen


def _chosen(name: str, source: OriginConfig) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return (not source.include or matches(source.include)) and not matches(source.exclude)


def _check_name(file: SourceFile) -> None:
    """Raise DataError unless the name is UTF-8 and stands for a file that can be read twice."""
    check_utf8_name(file.name, where=str(file.path))
    if isinstance(file.path, Path):
        check_regular(file.path)


def check_utf8_name(name: str, where: str) -> None:
    """Raise DataError if the name of a file is not UTF-8: it is part of a key, which is JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError("the name of a file is not UTF-8", where=where, todo="rename it") from None


def check_regular(path: Path) -> None:
    """Check that a path is a file, or a link to one: a pipe can be read once, or never ends.

    Raises:
        DataError: it is none, or a link that leads nowhere.
    """
    with reading(path):
        try:
            mode = path.stat().st_mode
        except OSError:
            if not path.is_symlink():
                raise
            raise DataError(
                f"a link that leads nowhere: {os.readlink(path)}",
                where=str(path),
                todo="remove or mend it, or leave it out (exclude)",
            ) from None
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a directory, device or socket"
        raise DataError(
            f"{kind} and not a file", where=str(path), todo="write what it holds into a file"
        )


def _check_kind(file: SourceFile, source: OriginConfig) -> None:
    layout = file_layout(file.name)
    if layout is None:
        raise DataError(
            f"cannot read a file of this kind: {file.name}",
            where=str(file.path),
            todo="give .txt, .jsonl or .json (also .gz, .zst), .parquet, or a glob that picks them",
        )
    if layout == "parquet" and source.encoding != UTF8:
        raise DataError(
            f"source {source.name!r} names an encoding, and Parquet is always in UTF-8",
            where=str(file.path),
            todo="leave it out (exclude), or give it as a source without encoding",
        )


def _files_at(path: str) -> list[SourceFile]:
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if "://" in path:
        return _files_at_url(path)
    with reading(Path(path)):
        if os.path.isdir(path):
            return list(_walk(Path(path), Path(path), set()))
        if os.path.lexists(path):
            return [SourceFile(Path(path).name, Path(path))]
        if glob.has_magic(path):
            base = _fixed_part(path)
            hits = (Path(hit) for hit in glob.glob(path, recursive=True))
            return [
                SourceFile(hit.relative_to(base).as_posix(), hit)
                for hit in hits
                if not hit.is_dir()
            ]
    raise DataError("no such file, directory or glob", where=path, todo="check the path")


def _files_at_url(url: str) -> list[SourceFile]:
    """Files of any file system that fsspec knows: s3, gs, http, memory, and what is installed."""
    from upath import UPath

    try:
        root = UPath(url)
        fs, place = root.fs, root.path
        fs.invalidate_cache()  # a process may ask twice: what it heard then may have changed
        if glob.has_magic(place):
            base, hits = _fixed_part(place).as_posix(), fs.glob(place)
        elif fs.isdir(place):
            base, hits = place, fs.find(place)
        else:
            base, hits = root.parent.path, [place] if fs.exists(place) else []
        hidden = re.compile(r"(^|/)[._]")
        names = {hit: _below(base, hit) for hit in hits if fs.isfile(hit)}
        found = [
            SourceFile(name, UPath(hit, protocol=root.protocol, **root.storage_options))
            for hit, name in names.items()
            if not hidden.search(name)
        ]
    except ImportError as error:
        raise DataError(
            f"no driver for this file system: {first_line(error)}", where=url, todo="install it"
        ) from error
    except Exception as error:  # each file system's own: no common class
        raise DataError(
            f"cannot list these files: {first_line(error)}",
            where=url,
            todo="check the address, the network and the credentials",
        ) from error
    if not found:
        raise DataError("no such file, directory or glob", where=url, todo="check the path")
    return found


def _below(base: str, path: str) -> str:
    """A file's name below a directory, as the file system spells both."""
    return path.strip("/").removeprefix(base.strip("/")).lstrip("/")


def _walk(root: Path, folder: Path, seen: set[str]) -> Iterator[SourceFile]:
    """Every file below `folder`; names that begin with . or _ are nobody's documents."""
    real = os.path.realpath(folder)
    if real in seen:  # a link back to where we have been
        return
    seen.add(real)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith((".", "_")):
            continue
        if os.path.isdir(entry.path):  # entry.is_dir() fails at a link that is a circle
            yield from _walk(root, Path(entry.path), seen)
        else:
            path = Path(entry.path)
            yield SourceFile(path.relative_to(root).as_posix(), path)


def _fixed_part(pattern: str) -> Path:
    """The directory of a glob before its first wildcard."""
    parts = Path(pattern).parts
    magic = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:magic])


def inputs(config: Sourced, cache: Path | None = None) -> list[InputFile]:
    """Everything that sources are, by content: in the order of sources and names.

    Args:
        cache: a JSON file that remembers digests by path, size, inode and times.

    Raises:
        DataError: a source has no files, or one cannot be read.
    """
    digests = DigestCache(cache)
    found = [file for source in config.sources for file in _inputs_of(source, digests)]
    digests.save()
    return found


def describe_inputs(config: Sourced) -> dict[str, str]:
    """Files and bytes of each source, for people.

    Raises:
        DataError: a source has no files, or one cannot be read.
    """
    told = {}
    for source in config.sources:
        if source.hf is not None:
            told[source.name] = f"hf:{source.hf}, split {source.split}"
            continue
        files = source_files(source)
        size = sum(file.path.stat().st_size for file in files)
        told[source.name] = f"{len(files):,} files, {size:,} bytes"
    return told


def _inputs_of(source: OriginConfig, digests: DigestCache) -> Iterator[InputFile]:
    if source.hf is not None and not Path(source.hf).is_dir():
        yield InputFile(source.name, f"hf:{source.hf}", 0, f"git:{hub_commit(source)}")
        return
    if source.hf is not None:
        files = sorted(_walk(Path(source.hf), Path(source.hf), set()))
        for file in files:
            _check_name(file)
    else:
        files = source_files(source)
    for file in files:
        size, sha256 = digests.digest(file.path)
        yield InputFile(source.name, file.name, size, sha256)


def hub_name(dataset: str) -> str:
    """A dataset's name on the hub, or of its directory: not where that lies."""
    return Path(dataset).name if Path(dataset).is_dir() else dataset


def hub_commit(source: OriginConfig) -> str:
    """The commit that a dataset on the hub stands at.

    Raises:
        DataError: the hub has no such dataset or revision, or cannot be reached.
    """
    if source.revision and re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    from huggingface_hub import HfApi

    assert source.hf is not None
    try:
        commit = HfApi().dataset_info(source.hf, revision=source.revision).sha
    except Exception as error:  # the hub and its HTTP library: no common class
        raise DataError(
            f"cannot ask the hub about this dataset: {first_line(error)}",
            where=f"hf:{source.hf}",
            todo="check its name and the network, or set revision to a full commit",
        ) from error
    assert commit is not None
    return str(commit)


class DigestCache:
    """SHA-256 of files, remembered while path, size, inode and times stay the same."""

    def __init__(self, path: Path | None):
        self._path = path
        self._known: dict[str, list[Any]] = _load(path)
        self._changed = False

    def digest(self, path: Path) -> tuple[int, str]:
        """Size in bytes and hex SHA-256 of a file."""
        if not isinstance(path, Path):
            # An object store knows its objects by tag or version: nothing is fetched to ask.
            with reading(path):
                return int(path.stat().st_size), _version(path)
        with reading(path):
            now = path.stat()
            key = str(path.resolve())
            stamp = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
            known = self._known.get(key)
            if known is not None and known[:4] == stamp:
                return now.st_size, str(known[4])
            sha256 = sha256_file(path)
        if time.time_ns() - max(now.st_mtime_ns, now.st_ctime_ns) > _SETTLED_NS:
            self._known[key] = [*stamp, sha256]
            self._changed = True
        return now.st_size, sha256

    def save(self) -> None:
        """Write what is new, if a file was given. Where it cannot be, it is hashed again."""
        if self._path is not None and self._changed and not why_not_writable(self._path.parent):
            make_directory(self._path.parent)
            replace_durably(self._path, json.dumps(self._known).encode())


#: How file systems name the tag of an object's contents.
_TAGS = ("ETag", "etag")


def _version(path: Any) -> str:
    """By the tag alone where there is one: listing and asking tell the rest differently."""
    info = path.fs.info(path.path)
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), None)
    return f"ukey:{path.fs.ukey(path.path)}" if tag is None else "etag:" + tag.strip('"')


def _load(path: Path | None) -> dict[str, list[Any]]:
    """The cache, or an empty one: a damaged cache only costs the time to hash again."""
    if path is None or not path.exists():
        return {}
    try:
        known = json.loads(path.read_bytes())
    except ValueError:
        return {}
    if not isinstance(known, dict):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, list) and len(v) == 5}
