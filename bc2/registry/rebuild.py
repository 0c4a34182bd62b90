"""From manifests and tag files back to an index, also while others publish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from bc2.errors import Bc2Error, IntegrityError
from bc2.files import lock_directory
from bc2.registry import index as ix
from bc2.registry import manifest as mf
from bc2.registry import payload, queries
from bc2.registry.artifact import Artifact
from bc2.registry.draft import place_of
from bc2.registry.places import in_place


@dataclass
class Found:
    """What a look through the home found."""

    artifacts: list[Artifact] = field(default_factory=list)
    """Those in place and in the index now."""
    adopted: list[Artifact] = field(default_factory=list)
    """Of these, those that the index did not know."""
    broken: list[Bc2Error] = field(default_factory=list)
    """Directories whose manifest or file sizes are wrong; the index keeps what it had."""
    dropped: list[Artifact] = field(default_factory=list)
    """Rows of the index without any directory: forgotten."""


def reconcile(index: ix.Index, home: Path) -> Found:
    """Make the index say what the manifests and tag files say; payloads are not read.

    Directories that another process is publishing or removing are left to it.
    """
    found = Found()
    with index.writing() as connection:
        known = {artifact.path: artifact for artifact in queries.select(connection, home)}
        here = set()
        for folder in in_place(home):
            here.add(folder)
            _take(connection, folder, known.get(folder), found)
        for path, artifact in known.items():
            if path not in here:
                queries.delete(connection, artifact.digest)
                found.dropped.append(artifact)
        connection.execute(ix.tags.delete())
        registered = {artifact.digest for artifact in queries.select(connection, home)}
        for path, digest in tag_files(home):
            kind, name = path.parts[-4], path.parts[-3]
            if digest in registered:
                queries.set_tag(connection, kind, name, path.name, digest)
    return found


def _take(connection: Connection, folder: Path, known: Artifact | None, found: Found) -> None:
    try:
        with lock_directory(folder, shared=True) as held:
            if not held:
                return
            artifact = inspect(folder)
            queries.insert(connection, artifact)
    except FileNotFoundError:  # removed meanwhile
        return
    except Bc2Error as error:
        found.broken.append(error)
        return
    found.artifacts.append(artifact)
    if known is None:
        found.adopted.append(artifact)


def whole(index: ix.Index, folders: Iterable[Path]) -> list[Artifact]:
    """The whole artifacts among directories in place that the index does not know.

    What another process is publishing or removing is not among them.
    """
    found = [artifact for artifact in map(_whole, folders) if artifact is not None]
    with index.reading() as connection:  # one may have been published since `folders` was made
        return [artifact for artifact in found if not queries.has(connection, artifact.digest)]


def _whole(folder: Path) -> Artifact | None:
    with suppress(OSError, Bc2Error), lock_directory(folder, shared=True) as held:
        return inspect(folder) if held else None
    return None


def inspect(folder: Path) -> Artifact:
    """The artifact in a directory of the home, its manifest and file sizes checked.

    Raises:
        IntegrityError: they are wrong, or it is in the wrong place.
    """
    manifest = mf.read(folder)
    if folder.parts[-3:] != place_of(manifest.kind, manifest.name, manifest.digest).parts:
        raise IntegrityError("an artifact is in another one's place", where=str(folder))
    payload.check_sizes(folder, manifest)
    return Artifact.of(manifest, folder)


def tag_files(home: Path) -> Iterator[tuple[Path, str]]:
    """Every tag file of the home, with the digest in it; names still being written are not."""
    for path in sorted((home / "artifacts").glob("*/*/tags/*")):
        if not path.name.startswith("."):
            yield path, path.read_text(encoding="utf-8", errors="replace").strip()


def rebuild(index: ix.Index, home: Path) -> Found:
    """`reconcile`, with the tags that point nowhere among what is broken."""
    found = reconcile(index, home)
    with index.reading() as connection:
        for path, digest in tag_files(home):
            if not queries.has(connection, digest):
                todo = "tag another artifact so, or delete the file"
                found.broken.append(
                    IntegrityError("a tag points at nothing", where=str(path), todo=todo)
                )
    return found
