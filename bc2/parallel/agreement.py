"""Ranks act together: all fail if one fails, and all see the same files."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bc2.errors import Bc2Error, RunFailed
from bc2.parallel.mesh import Group


@contextmanager
def fail_together(ranks: Group) -> Iterator[None]:
    """If the block fails on one rank, raise its error on all ranks, so that none waits for it."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    sent = None if error is None else as_on_other_ranks(error, ranks)
    errors = ranks.all_gather_object(sent)
    if error is not None:
        raise error
    for other in errors:
        if other is not None:
            raise other


def as_on_other_ranks(error: Exception, ranks: Group) -> Exception:
    """An error as the other ranks raise it."""
    where = f"rank {ranks.rank}"
    if isinstance(error, Bc2Error):
        where += f", {error.where}" if error.where else ""
        return type(error)(error.what, where=where, todo=error.todo)
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, where)
    return RunFailed(f"{type(error).__name__}: {error}", where=where)


def check_shared_folder(folder: Path, ranks: Group) -> None:
    """Check that all ranks see what the first one writes into a folder.

    Raises:
        RunFailed: one does not; on every rank.
    """
    path = folder / f".seen-{ranks.broadcast_object(secrets.token_hex(8))}"
    with fail_together(ranks):
        if ranks.rank == 0:
            path.touch()
    with fail_together(ranks):
        check_sees(path, ranks)
    if ranks.rank == 0:
        path.unlink()


def check_sees(path: Path, ranks: Group) -> None:
    """Check that this rank sees a file that rank 0 wrote. Raises: RunFailed if it does not."""
    if not path.exists():
        raise RunFailed(
            f"rank {ranks.rank} does not see what rank 0 writes",
            where=str(path.parent),
            todo="put BC2_HOME on a file system that all machines share",
        )
