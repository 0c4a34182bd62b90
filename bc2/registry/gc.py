"""Removing what nobody needs: first a plan to look at, then the removal.

The plan may be stale when it is carried out, so each removal asks again, under
the lock of the directory and in one transaction of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from bc2.errors import Bc2Error, IntegrityError, RunFailed, UsageError, from_os_error
from bc2.files import lock_directory
from bc2.registry import manifest as mf
from bc2.registry import staging
from bc2.registry.artifact import Artifact
from bc2.registry.rebuild import in_place, tag_files
from bc2.registry.store import Registry


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


@dataclass(frozen=True)
class Done:
    """What `carry_out` did."""

    removed: list[Doomed]
    kept: list[tuple[Doomed, str]]
    """With the reason why each was kept after all."""


def plan(
    registry: Registry, named: Sequence[Artifact] = (), keep_last: int | None = None
) -> list[Doomed]:
    """What there is to remove.

    Args:
        registry: where.
        named: artifacts to remove; children of each other are taken first.
        keep_last: of each unfinished run's checkpoints, keep the last so many.

    Raises:
        RunFailed: a named one is needed or tagged, or the index is not this home's.
        UsageError: `keep_last` is below 1.
    """
    if keep_last is not None and keep_last < 1:
        raise UsageError("--keep-last must be at least 1: the newest is never removed")
    try:
        doomed = _abandoned(registry) + _orphans(registry) + _torn_tags(registry)
        chosen = _in_order(registry, named)
        if keep_last is not None:
            old = _old_checkpoints(registry, keep_last)
            chosen += [artifact for artifact in old if artifact not in chosen]
        return doomed + [_artifact(registry, artifact, named) for artifact in chosen]
    except OSError as error:
        raise from_os_error(error, "looking for what to remove") from error


def carry_out(doomed: Sequence[Doomed]) -> Done:
    """Remove what was planned, except what has come into use since."""
    done = Done([], [])
    for item in doomed:
        try:
            removed = item.remove()
        except Bc2Error as error:
            done.kept.append((item, str(error)))
            continue
        except OSError as error:
            raise from_os_error(error, "removing what nobody needs") from error
        if removed:
            done.removed.append(item)
        else:
            done.kept.append((item, "in use, or registered since"))
    return done


def _artifact(registry: Registry, artifact: Artifact, named: Sequence[Artifact]) -> Doomed:
    def remove() -> bool:
        registry.remove(artifact)
        return True

    why = "named" if artifact in named else "an older checkpoint of a run"
    return Doomed(artifact.path, why, _size(artifact.path), artifact, remove)


def _abandoned(registry: Registry) -> list[Doomed]:
    return [
        Doomed(
            path,
            "abandoned by a process that died",
            _size(path),
            None,
            partial(staging.sweep_one, path),
        )
        for path in staging.abandoned(registry.staging)
    ]


def _orphans(registry: Registry) -> list[Doomed]:
    """Directories in place that the index does not know and nothing needs.

    Raises:
        RunFailed: the index knows nothing at all: it is the index that is wrong.
    """
    registered = registry.list()
    known = {artifact.path for artifact in registered}
    needed = _needed(registry, registered)
    found = [path for path in in_place(registry.home) if path not in known]
    doomed = [
        Doomed(
            path,
            "not in the index: left by a process that died",
            _size(path),
            None,
            partial(_remove_orphan, registry, path),
        )
        for path in found
        if path.name not in needed and _is_free(path)
    ]
    if doomed and not registered:
        raise RunFailed(
            f"the index knows none of the {len(doomed)} artifacts of this home",
            where=str(registry.home),
            todo="run `bc2 registry rebuild` first",
        )
    return doomed


def _needed(registry: Registry, registered: Sequence[Artifact]) -> set[str]:
    """Refs that something registered or tagged is made from, through orphans too."""
    waiting = [parent for artifact in registered for parent in artifact.parents]
    waiting += [digest for _, digest in tag_files(registry.home)]
    homes = {path.name: path for path in in_place(registry.home)}
    needed: set[str] = set()
    while waiting:
        ref = waiting.pop()[:16]
        if ref in homes and ref not in needed:
            with suppress(IntegrityError):  # a broken one is needed, but leads no further
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
            staging.throw_away(path, registry.staging)
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
    return sum(found.lstat().st_size for found in path.rglob("*") if found.is_file())
