"""Bringing in what another registry, or no registry, made."""

from __future__ import annotations

import errno
import shutil
from contextlib import ExitStack
from pathlib import Path

from bc2 import files
from bc2.errors import DataError, IntegrityError, UsageError, from_os_error
from bc2.registry import manifest as mf
from bc2.registry import payload, publish, staging
from bc2.registry.artifact import Artifact
from bc2.registry.draft import Draft, Kind, Role, stage_key
from bc2.registry.store import Registry


def import_artifact(registry: Registry, source: Path) -> Artifact:
    """Copy an artifact of another registry, with its manifest, and register it here.

    Its parents need not be here. A damaged copy of the same artifact is replaced.

    Raises:
        IntegrityError: the copy is not what its manifest says.
        ResourceError: the disk is full; nothing is left behind.
    """
    try:
        manifest = mf.read(source)
        payload.check_sizes(source, manifest)
        payload.check_no_others(source, manifest)
        return _import(registry, source, manifest)
    except IntegrityError as error:
        raise _of_source(error, source) from None
    except OSError as error:
        raise from_os_error(error, f"importing {source}") from error


def _import(registry: Registry, source: Path, manifest: mf.Manifest) -> Artifact:
    root = registry.staging_of(manifest.kind, manifest.name)
    with ExitStack() as lock:
        aside = staging.create(root, lock)
        try:
            with staging.blaming(aside, str(source)):
                _copy(source, aside)
                payload.check(aside, manifest)
            files.write_durably(aside / mf.FILENAME, mf.to_bytes(manifest))
            files.sync_tree(aside)
            publish.place(registry.home, registry.index, aside, manifest, orphans=True)
        finally:
            staging.discard(aside)
    return registry.get(manifest.digest)


def _of_source(error: IntegrityError, source: Path) -> IntegrityError:
    """What is wrong with what is brought in; what to do is said of this registry's artifacts."""
    if not (error.where or "").startswith(str(source)):
        return error
    todo = "what is imported must be as its manifest says: remove what is too much, or take "
    return IntegrityError(error.what, where=error.where, todo=f"{todo}a good copy")


def import_directory(
    registry: Registry, source: Path, kind: Kind, name: str, role: Role | None = None
) -> Artifact:
    """Register a copy of a plain directory as an artifact without parents.

    Its key is made from its files, so the same directory is registered once. A checkpoint of
    which no `role` is said is a base model.

    Raises:
        DataError: no such directory, an empty one, or links in it.
    """
    if not source.is_dir():
        raise DataError("no such directory to import", where=str(source), todo="check the path")
    if (source / mf.FILENAME).exists():
        raise UsageError(
            "this directory is an artifact already",
            where=str(source),
            todo="import it without --kind and --name",
        )
    try:
        entries = [entry.model_dump() for entry in payload.measure(source)]
        if not entries:
            raise DataError("this directory has no files", where=str(source), todo="check the path")
        key = stage_key(kind, 0, {"imported": entries}, ())
        facts = {"imported_from": str(source.absolute())}
        with registry.stage(Draft(kind, name, key, facts=facts, role=role)) as staged:
            with staging.blaming(staged.path, str(source)):
                _copy(source, staged.path)
            return staged.publish()
    except OSError as error:
        raise from_os_error(error, f"importing {source}") from error


def _copy(source: Path, target: Path) -> None:
    """Raises: OSError, which names the source; ResourceError: the target's disk is full."""
    for relpath in payload.paths(source):
        (target / relpath).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / relpath, target / relpath)
        except OSError as error:
            # copyfile blames the source when it is the target's disk that is full.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                full = OSError(error.errno, error.strerror, str(target))
                raise from_os_error(full, f"importing {source}") from error
            raise
