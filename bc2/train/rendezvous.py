"""How the ranks of a run come together: they agree on what they train, and only they train it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

import bc2
from bc2 import __version__
from bc2.errors import RunFailed, out_of_memory
from bc2.files import lock_directory, make_directory, sha256_file, sha256_json
from bc2.parallel.agreement import check_shared_folder, fail_together
from bc2.parallel.mesh import Group, Mesh, all_ranks, check_same_on_all_ranks, make_mesh
from bc2.ranks import LOST, RENDEZVOUS_TIMEOUT_S
from bc2.registry import Registry
from bc2.train.device import rank_device
from bc2.train.run import Run
from bc2.train.training_settings import TrainingSettings


def check_ranks_agree(
    settings: TrainingSettings, work: Path, *, wait_s: float = RENDEZVOUS_TIMEOUT_S
) -> None:
    """Before any work: all ranks have the same recipe and code, and see the same files.

    Args:
        work: a folder of the home, which all ranks must share.
        wait_s: how long to wait for all ranks to come.

    Raises:
        RecipeError: the ranks do not fit the layout, or their recipes or code differ.
        RunFailed: they do not share the folder, or one is lost or did not come.
    """
    ranks = all_ranks(rank_device(settings.training.device), wait_s=wait_s)
    with explain_lost_rank(ranks):
        check_same_on_all_ranks(ranks, "[parallel]", settings.parallel.model_dump(mode="json"))
        check_same_on_all_ranks(ranks, "recipe", {"name": settings.name, **settings.by_name()})
        check_same_on_all_ranks(ranks, "code", _code())
        make_directory(work)
        check_shared_folder(work, ranks)


def join_ranks(run: Run) -> Mesh:
    """The mesh of the run's ranks. Every rank calls it, with the same run.

    Raises:
        RecipeError: the ranks do not fit the layout, or their runs differ.
    """
    mesh = make_mesh(run.parallel, torch.device(run.config.device))
    if mesh.world.size > 1:
        settings = run.settings.by_name() | {"inputs": list(run.inputs.digests())}
        check_same_on_all_ranks(mesh.world, "recipe or input", settings)
    return mesh


def _code() -> dict[str, str]:
    """The versions of bc2 and torch, and a digest of bc2's source."""
    root = Path(bc2.__file__).parent
    sources = {str(path.relative_to(root)): sha256_file(path) for path in root.rglob("*.py")}
    return {"bc2": __version__, "torch": torch.__version__, "source": sha256_json(sources)[:16]}


@contextmanager
def explain_lost_rank(ranks: Group) -> Iterator[None]:
    """Turn the error of a broken collective into one that says that another rank was lost.

    Raises:
        RunFailed: a collective broke. Why, the rank says that failed first.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        # NCCL's first collective takes memory of its own.
        if ranks.size == 1 or not lost or out_of_memory(error):
            raise
        raise RunFailed(
            f"rank {ranks.rank} {LOST}: {_reason(str(error).splitlines())}",
            todo="see what the rank that failed first said, and start all again",
        ) from error


def _reason(lines: list[str]) -> str:
    """The first line of a message; of NCCL's, what follows its "Last error:"."""
    if "Last error:" in lines[:-1]:
        return f"NCCL: {lines[lines.index('Last error:') + 1]}"
    return lines[0]


#: How long to retry when another process has the run's lock, seconds: it may only have looked
#: whether the run is there.
_LOCK_RETRY_S = 2.0


@contextmanager
def lock_run(run: Run, registry: Registry, mesh: Mesh) -> Iterator[None]:
    """Hold the lock of a run, so that no other process trains it.

    Raises:
        RunFailed: on every rank, if another process trains it.
    """
    with ExitStack() as held:
        with fail_together(mesh.world):
            if mesh.first:
                held.enter_context(_locked(run, registry))
        yield


@contextmanager
def _locked(run: Run, registry: Registry) -> Iterator[None]:
    # By key, not by name: the same settings under two names are one run.
    lock = registry.work / f"{run.algorithm.name}-{run.key}"
    make_directory(lock)
    until = time.monotonic() + _LOCK_RETRY_S
    while True:
        with lock_directory(lock) as locked:
            if locked:
                yield
                return
        if time.monotonic() > until:
            raise RunFailed(
                f"another process is training {run.name!r}",
                where=str(run.folder(registry)),
                todo="wait for it or stop it; two processes cannot go on with one run",
            )
        time.sleep(0.05)
