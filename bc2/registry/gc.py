"""Removing what nobody needs: first a plan to look at, then the removal.

The plan may be stale when it is carried out, so each removal asks again, under
the lock of the directory and in one transaction of the index.

Only what a process that died can have left is removed without being named. A
manifest comes into place whole: whatever has one is an artifact, which an index
restored from an older copy may not know.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

from bc2.errors import Bc2Error, RefError, RunFailed, UsageError, from_os_error
from bc2.files import lock_directory
from bc2.registry import manifest as mf
from bc2.registry import removal, staging, verified
from bc2.registry.artifact import Artifact
from bc2.registry.places import in_place, unknown
from bc2.registry.rebuild import tag_files
from bc2.registry.removal import StillNeeded
from bc2.registry.store import Registry
from bc2.user_paths import expand_if_known


@dataclass(frozen=True)
class Doomed:
    """Something to remove."""

    path: Path
    why: str
    size: int
    """Bytes of its files."""
    artifact: Artifact | None
    """None for what is not registered."""
    remove: Callable[[], bool]
    """Removes it, unless it came to be needed; says whether it did."""
    named: bool = False
    """Whether a person named it."""


@dataclass(frozen=True)
class Done:
    """What `carry_out` did."""

    removed: list[Doomed]
    kept: list[tuple[Doomed, str]]
    """With the reason why each was kept after all."""
    failed: list[Bc2Error] = field(default_factory=list)
    """The reasons for those of `kept` that could not be removed, or were named."""


def choose(registry: Registry, text: str) -> Artifact | Path:
    """What a person names to have it removed: an artifact, or a directory that is not registered.

    A path is taken by its name alone: what is there may be damaged.

    Raises:
        RefError: nothing answers to it.
    """
    given = expand_if_known(text).absolute()
    for folder in in_place(registry.home):
        if folder.name == given.name and folder.resolve() == given.resolve():
            known = registry.with_prefix(folder.name)
            return known[0] if known else folder
    return registry.resolve(text)


def left_alone(registry: Registry) -> list[tuple[Path, str]]:
    """The directories in place that are not registered, and stay: each with why and what to do."""
    if registry.is_blank():  # looking makes no index
        return []
    whole = {artifact.path for artifact in registry.forgotten()}
    found: list[tuple[Path, str]] = []
    for folder in unknown(registry.index, registry.home):
        remove = shlex.join(["bc2", "registry", "gc", str(folder), "--yes"])
        if folder in whole:
            found.append((folder, "`bc2 registry rebuild` adopts it"))
        elif _has_manifest(folder) and _is_free(folder):
            found.append((folder, f"damaged, and `{remove}` removes it"))
    return found


def plan(
    registry: Registry,
    named: Sequence[Artifact] = (),
    keep_last: int | None = None,
    folders: Sequence[Path] = (),
) -> list[Doomed]:
    """What there is to remove.

    Args:
        registry: where.
        named: artifacts to remove; children of each other are taken first.
        keep_last: of each unfinished run's checkpoints, keep the last so many.
        folders: directories in place to remove that are not registered.

    Raises:
        RunFailed: a named one is needed or tagged, or the index is not this home's.
        UsageError: `keep_last` is below 1.
    """
    if keep_last is not None and keep_last < 1:
        raise UsageError("--keep-last must be at least 1: the newest is never removed")
    try:
        doomed = _abandoned(registry) + _orphans(registry, folders) + _torn_tags(registry)
        doomed += _notes_of_nothing(registry)
        chosen = _in_order(registry, named)
        if keep_last is not None:
            old = _old_checkpoints(registry, keep_last)
            chosen += [artifact for artifact in old if artifact not in chosen]
        return doomed + [_artifact(registry, artifact, named) for artifact in chosen]
    except OSError as error:
        raise from_os_error(error, "looking for what to remove") from error


def carry_out(doomed: Sequence[Doomed]) -> Done:
    """Remove what was planned, except what has come into use since or cannot be removed."""
    done = Done([], [])
    for item in doomed:
        try:
            if item.remove():
                done.removed.append(item)
                continue
            error: Bc2Error = StillNeeded("in use, or registered since")
        except Bc2Error as refused:
            error = refused
        except OSError as refused:
            error = removal.explain(refused, item.path.name, item.path)
        done.kept.append((item, str(error)))
        # What came into use meanwhile is no failure, unless it was to be removed by name; and
        # what is not registered (any more), another process removed.
        if not isinstance(error, RefError) and (item.named or not isinstance(error, StillNeeded)):
            done.failed.append(error)
    return done


def _artifact(registry: Registry, artifact: Artifact, named: Sequence[Artifact]) -> Doomed:
    def remove() -> bool:
        registry.remove(artifact)
        return True

    asked = artifact in named
    why = "named" if asked else "an older checkpoint of a run"
    return Doomed(artifact.path, why, _size(artifact.path), artifact, remove, asked)


def _abandoned(registry: Registry) -> list[Doomed]:
    return [
        Doomed(
            path,
            "abandoned by a process that died",
            _size(path),
            None,
            partial(staging.sweep_one, path),
        )
        for path in staging.abandoned(registry.home)
    ]


def _orphans(registry: Registry, named: Sequence[Path]) -> list[Doomed]:
    """Directories in place that the index does not know: those named, and half-made ones.

    Raises:
        RunFailed: the index knows nothing at all: it is the index that is wrong.
    """
    if registry.is_blank():
        return []
    registered = registry.list()
    strange = unknown(registry.index, registry.home)
    if not registered and (whole := [path for path in strange if _has_manifest(path)]):
        raise RunFailed(
            f"the index knows none of the {len(whole)} artifacts of this home",
            where=str(registry.home),
            todo="run `bc2 registry rebuild` first",
        )
    needed = _needed(registry, registered)
    half_made = [
        path
        for path in strange
        if path.name not in needed and not _has_manifest(path) and _is_free(path)
    ]
    return [
        Doomed(
            path,
            "named" if path in named else "without a manifest: left by a process that died",
            _size(path),
            None,
            partial(_remove_orphan, registry, path),
            path in named,
        )
        for path in dict.fromkeys((*named, *half_made))
    ]


def _has_manifest(folder: Path) -> bool:
    """Whether anything was ever written into its manifest; a damaged one counts."""
    try:
        # A file that was not synced when the power failed may be empty, or hold zeros.
        return bool((folder / mf.FILENAME).read_bytes().strip(b"\0"))
    except FileNotFoundError:
        return False


def _needed(registry: Registry, registered: Sequence[Artifact]) -> set[str]:
    """Refs that something registered or tagged is made from, through orphans too."""
    waiting = [parent for artifact in registered for parent in artifact.parents]
    waiting += [digest for _, digest in tag_files(registry.home)]
    homes = {path.name: path for path in in_place(registry.home)}
    needed: set[str] = set()
    while waiting:
        ref = waiting.pop()[:16]
        if ref in homes and ref not in needed:
            with suppress(Bc2Error):  # a broken one is needed, but leads no further
                waiting += mf.read(homes[ref]).parents
        needed.add(ref)
    return needed


def _is_free(path: Path) -> bool:
    try:
        with lock_directory(path) as held:
            return held
    except FileNotFoundError:
        return False


def _remove_orphan(registry: Registry, path: Path) -> bool:
    try:
        with lock_directory(path) as held:
            if not held:
                return False
            registered = registry.with_prefix(path.name)
            if registered or path.name in _needed(registry, registry.list()):
                return False
            removal.throw_away(path)
            return True
    except FileNotFoundError:
        return False


def _torn_tags(registry: Registry) -> list[Doomed]:
    def remove(path: Path) -> bool:
        # Tags are written inside the one writing transaction, so none is being written now.
        with registry.index.writing():
            path.unlink(missing_ok=True)
        return True

    return [
        Doomed(path, "an interrupted write of a tag", 0, None, partial(remove, path))
        for path in sorted((registry.home / "artifacts").glob("*/*/tags/.*.tmp"))
    ]


def _notes_of_nothing(registry: Registry) -> list[Doomed]:
    """What is remembered of the files of artifacts that are not registered (any more)."""
    try:
        noted = sorted((registry.home / verified.FOLDER).iterdir())
    except FileNotFoundError:
        return []
    registered = {artifact.digest for artifact in registry.list()}

    def remove(path: Path) -> bool:
        shutil.rmtree(path)
        return True

    why = "which files were verified of an artifact that is gone"
    return [
        Doomed(path, why, _size(path), None, partial(remove, path))
        for path in noted
        if path.name not in registered
    ]


def _in_order(registry: Registry, named: Sequence[Artifact]) -> list[Artifact]:
    """`named` with children before their parents. Raises: RunFailed if one must stay."""
    left = {artifact.digest: registry.get(artifact.digest) for artifact in named}
    below = {digest: registry.children(artifact) for digest, artifact in left.items()}
    ordered: list[Artifact] = []
    while left:
        free = [
            digest
            for digest in left
            if not [child for child in below[digest] if child not in ordered]
        ]
        if not free:
            stuck = next(iter(left.values()))
            child = next(child for child in below[stuck.digest] if child not in ordered)
            raise RunFailed(
                f"{stuck.title} is needed by {child.title}",
                todo=f"name {child.ref} as well, to remove both",
            )
        ordered += [_untagged(left.pop(digest)) for digest in free]
    return ordered


def _untagged(artifact: Artifact) -> Artifact:
    if artifact.tags:
        raise RunFailed(
            f"{artifact.title} is tagged {', '.join(artifact.tags)}",
            todo=f"bc2 registry tag --delete {artifact.ref} {artifact.tags[0]}",
        )
    return artifact


def _old_checkpoints(registry: Registry, keep_last: int) -> list[Artifact]:
    def run(artifact: Artifact) -> tuple[str, str]:
        return artifact.name, artifact.key

    def far(artifact: Artifact) -> tuple[int, int, str]:
        at = artifact.position
        return (at.step, at.tokens, artifact.created) if at else (-1, -1, artifact.created)

    old: list[Artifact] = []
    for _, group in groupby(sorted(registry.list("checkpoint"), key=run), key=run):
        by_age = sorted(group, key=far, reverse=True)
        old += [
            artifact
            for artifact in by_age[keep_last:]
            if not artifact.finished and not artifact.tags and not registry.children(artifact)
        ]
    return old


def _size(path: Path) -> int:
    """Bytes of the files below a directory, as far as it can be looked into."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
