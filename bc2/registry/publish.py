"""Publishing: from a directory written aside to an artifact that exists.

The order is the promise. Files and directories are synced, then the manifest,
then one rename, then the names above it, and last of all the index. A crash
before the last leaves the old state; what is acknowledged survives.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from bc2 import files
from bc2.errors import DataError, IntegrityError, RunFailed
from bc2.registry import index as ix
from bc2.registry import manifest as mf
from bc2.registry import payload, queries, removal, staging
from bc2.registry.artifact import Artifact
from bc2.registry.draft import Draft, check_json, place_of

#: How long to wait before looking again at what another process is publishing, seconds.
_PAUSE_S = 0.01


def seal(
    aside: Path, draft: Draft, facts: Mapping[str, Any], known: Iterable[mf.FileEntry] = ()
) -> mf.Manifest:
    """Measure and sync the payload in `aside`, and write its manifest.

    Raises:
        DataError: an empty payload, links or special files in it, or a manifest of its own.
        IntegrityError: a file of `known` has another size.
    """
    check_json(facts, f"the facts of {draft.name}")
    if (aside / mf.FILENAME).exists():
        raise DataError(
            f"a payload may not hold a file {mf.FILENAME!r} at its top", where=str(aside)
        )
    entries = payload.measure(aside, known)
    if not entries:
        raise DataError(f"nothing was written for {draft.kind}/{draft.name}", where=str(aside))
    files.sync_tree(aside)
    manifest = mf.build(draft, entries, facts)
    files.write_durably(aside / mf.FILENAME, mf.to_bytes(manifest))
    files.sync_directory(aside)
    return manifest


def place(
    home: Path, index: ix.Index, aside: Path, manifest: mf.Manifest, *, orphans: bool = False
) -> None:
    """Bring a complete, synced directory, locked by the caller, into place and the index.

    Args:
        home: the registry's home.
        index: its index.
        aside: the directory, gone from there afterwards.
        manifest: the manifest in it.
        orphans: whether parents may be missing, as an imported artifact's may.

    Raises:
        RunFailed: a parent is not registered.
    """
    target = home / "artifacts" / place_of(manifest.kind, manifest.name, manifest.digest)
    artifact = Artifact.of(manifest, target)
    files.make_directory(target.parent)
    while not _rename(aside, target):
        if _accept(index, artifact, orphans):
            staging.discard(aside)
            return
    files.sync_directory(aside.parent)
    _sync_names(target)
    try:
        _register(index, artifact, orphans)
    except BaseException:
        if not registered(index, artifact.digest):
            removal.throw_away(target)
        raise


def _sync_names(target: Path) -> None:
    """Sync every directory from the artifact's up to the home.

    All of them, since another process may have made one and not have synced it yet.
    """
    for folder in list(target.parents)[:4]:
        files.sync_directory(folder)


def registered(index: ix.Index, digest: str) -> bool:
    """Whether the index has an artifact."""
    with index.reading() as connection:
        return queries.has(connection, digest)


def require(index: ix.Index, parents: tuple[str, ...]) -> None:
    """Raises: RunFailed if one of `parents` is not registered."""
    with index.reading() as connection:
        _require(connection, parents)


def _require(connection: Connection, parents: tuple[str, ...]) -> None:
    missing = queries.absent(connection, parents)
    if missing:
        raise RunFailed(
            f"a parent is not registered: {', '.join(digest[:16] for digest in missing)}",
            todo="import it with `bc2 registry import`, or run its stage again",
        )


def _register(index: ix.Index, artifact: Artifact, orphans: bool) -> None:
    with index.writing() as connection:
        if not orphans:
            _require(connection, artifact.parents)
        queries.insert(connection, artifact)


def _rename(aside: Path, target: Path) -> bool:
    try:
        os.rename(aside, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _accept(index: ix.Index, artifact: Artifact, orphans: bool) -> bool:
    """Whether what is in place already will do; if not, the rename is to be tried again.

    In place may be a copy that is being published or removed now (wait), one that a
    crash left out of the index (adopt it), or a damaged one (make way for ours).
    """
    with suppress(FileNotFoundError):
        with files.lock_directory(artifact.path, shared=True) as held:
            found = _intact(artifact) if held else None
            if found:
                _sync_names(artifact.path)
                _register(index, found, orphans)
                return True
        if held:
            _make_way(artifact)
        else:
            time.sleep(_PAUSE_S)
    return False


def _intact(artifact: Artifact) -> Artifact | None:
    """What is in place, as its own manifest records it; None if it is damaged."""
    try:
        found = mf.read(artifact.path)
        if found.digest == artifact.digest:
            payload.check(artifact.path, found)
            return Artifact.of(found, artifact.path)
    except (IntegrityError, DataError):
        return None
    raise RunFailed(f"two artifacts share the ref {artifact.ref}", where=str(artifact.path))


def _make_way(artifact: Artifact) -> None:
    with files.lock_directory(artifact.path) as held:
        if not held:
            raise RunFailed(
                f"the registered copy of {artifact.title} is damaged, and in use",
                where=str(artifact.path),
                todo="stop what uses it and run the same again",
            )
        removal.throw_away(artifact.path)
