"""Files read through by all ranks together, each its share."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

from bc2.files import CHUNK, sha256_file
from bc2.parallel.agreement import fail_together
from bc2.parallel.long_work import Pace, work_together
from bc2.parallel.mesh import Group
from bc2.registry import Artifact
from bc2.registry.manifest import FileEntry
from bc2.registry.payload import check_file, check_sizes
from bc2.registry.verified import FileIdentity, VerifiedFiles


def balanced_shares(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Share files so that every part has about as much to read.

    The largest first, each to the part with least: so no part has more than its equal share and
    one file above it. All ranks come to the same shares.

    Args:
        sizes: bytes of each file, by name.

    Returns:
        [parts] names, each in the order of `sizes`.
    """
    heap = [(0, part) for part in range(parts)]
    part_of: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        held, part = heap[0]
        part_of[name] = part
        heapq.heapreplace(heap, (held + reading_cost(sizes[name]), part))
    return [[name for name in sizes if part_of[name] == part] for part in range(parts)]


def reading_cost(size: int) -> int:
    """Bytes that take as long as to open a file and to read it."""
    return size + CHUNK


def check_files_together(
    artifact: Artifact,
    ranks: Group,
    remembered: VerifiedFiles | None = None,
    *,
    only: Collection[str] | None = None,
) -> None:
    """Find every file of an artifact intact. All ranks call it, and each reads a share.

    Args:
        remembered: what was found intact before is not read again, and this is added.
        only: the names of the files that are wanted, and read; None: all of them.

    Raises:
        IntegrityError: a file is not what was published; on every rank, with its name.
    """
    unread: list[str] = []
    with fail_together(ranks):
        files = artifact.manifest.files
        entries = {entry.path: entry for entry in files if only is None or entry.path in only}
        if ranks.rank == 0:
            check_sizes(artifact.path, artifact.manifest)
            known = remembered.unchanged(artifact.path, entries.values()) if remembered else ()
            unread = sorted(entries.keys() - known)
    unread = ranks.broadcast_object(unread)
    if not unread:
        return
    sizes = {name: entries[name].size for name in unread}
    mine = [entries[name] for name in balanced_shares(sizes, ranks.size)[ranks.rank]]
    found = work_together(
        ranks,
        partial(_check, artifact.path, mine, remembered),
        title=f"checking {artifact.title}",
        total=sum(sizes.values()),
    )
    if remembered is not None and ranks.rank == 0:
        remembered.keep({name: identity for share in found for name, identity in share.items()})


def _check(
    root: Path, entries: Iterable[FileEntry], remembered: VerifiedFiles | None, pace: Pace
) -> Mapping[str, FileIdentity]:
    """Read files through; what may be remembered of them."""
    for entry in entries:
        if remembered is None:
            check_file(root, entry, pace.count)
        else:
            remembered.check(root, entry, pace.count)
    return remembered.found if remembered else {}


def digest_files_together(folder: Path, sizes: Mapping[str, int], ranks: Group) -> dict[str, str]:
    """The hex SHA-256 of files, by name. All ranks call it, and each reads a share.

    Args:
        sizes: bytes of each file below `folder`.
    """
    mine = balanced_shares(sizes, ranks.size)[ranks.rank]

    def read(pace: Pace) -> dict[str, str]:
        return {name: sha256_file(folder / name, pace.count) for name in mine}

    found = work_together(ranks, read)
    return {name: digest for share in found for name, digest in share.items()}
