"""What a checkpoint costs a run: the wait of the loop, and slower steps during the save."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bc2.bench.contenders import Ours
from bc2.bench.spec import Spec
from bc2.parallel.mesh import Group, Mesh
from bc2.registry import Draft, Registry
from bc2.train.checkpoint import Saver
from bc2.train.snapshot import Snapshot, TrainerState

#: Most steps that are timed during a save.
MOST = 200


def save_while_training(
    ours: Ours, spec: Spec, timed: Callable[[], tuple[float, float]], steps: int, saves: int
) -> dict[str, Any]:
    """Take a snapshot, publish it on a thread, and train until it is on disk; several times.

    Args:
        ours: the contender whose state is saved.
        timed: makes a step and returns its seconds and loss.
        steps: steps that are timed before each save, and after the last.

    Returns:
        Fields of `bc2.bench.results.Checkpoint`. Medians of the saves: ``wait_s``, how long the
        loop stood still; ``save_s``, until the checkpoint was published; ``bytes`` written;
        ``lost_s``, that wait and the time that steps during the save took longer than those
        just before and after it. ``losses_s``, the same for each save. Seconds of each step:
        ``before_s``, before the saves and after; ``during_s``.
    """
    apart = [[timed()[0] for _ in range(steps)]]
    found: list[_Saved] = []
    with _shared_folder(Path(spec.shards).parent, ours.mesh.world) as folder:
        saver = _saver(spec, folder, ours.mesh)
        for number in range(saves):
            found.append(_save(ours, saver, timed, number + 1))
            apart.append([timed()[0] for _ in range(steps)])
    usual = [statistics.median([*one, *two]) for one, two in pairwise(apart)]
    lost = [
        saved.wait + sum(saved.during) - step * len(saved.during)
        for saved, step in zip(found, usual, strict=True)
    ]
    return {
        "wait_s": statistics.median(saved.wait for saved in found),
        "lost_s": statistics.median(lost),
        "losses_s": lost,
        "save_s": statistics.median(saved.took for saved in found),
        "bytes": found[-1].bytes,
        "before_s": [*chain(*apart)],
        # The last step of each began during the save and ended after it.
        "during_s": [*chain(*(saved.during[:-1] or saved.during for saved in found))],
    }


class _Saved(NamedTuple):
    wait: float
    took: float
    bytes: int
    during: list[float]


def _save(
    ours: Ours, saver: Saver, timed: Callable[[], tuple[float, float]], number: int
) -> _Saved:
    """Save the state, named as that of step `number`, and train until it is published."""
    world = ours.mesh.world
    done: list[float] = []
    began = time.perf_counter()
    saver.save(Snapshot.of(TrainerState(number), ours.models.snapshot(), b""))
    wait = time.perf_counter() - began
    with ThreadPoolExecutor(1) as waiting:
        saved = waiting.submit(saver.wait)
        saved.add_done_callback(lambda _: done.append(time.perf_counter()))
        during: list[float] = []
        while world.broadcast_object(not saved.done() and len(during) < MOST):
            during.append(timed()[0])
        artifact = saved.result()
    assert artifact is not None
    return _Saved(wait, done[0] - began, artifact.manifest.size, during)


@contextmanager
def _shared_folder(parent: Path, ranks: Group) -> Iterator[Path]:
    """A directory that the first rank makes, and removes when all are done with it."""
    with ExitStack() as held:
        folder = None
        if ranks.rank == 0:
            folder = held.enter_context(TemporaryDirectory(dir=parent, prefix="save-"))
        folder = ranks.broadcast_object(folder)
        assert folder is not None
        yield Path(folder)
        ranks.all_gather_object(None)


def _saver(spec: Spec, folder: Path, mesh: Mesh) -> Saver:
    tokenizer = folder / "tokenizer.model"
    if mesh.first:
        tokenizer.write_bytes(b"none")
    return Saver(
        Registry.open(folder / "home"),
        Draft(kind="checkpoint", name="bench", key="0" * 64),
        spec.settings.trained_configs,
        tokenizer,
        sequence_length=spec.training.sequence_length,
        keep=1,
        mesh=mesh,
    )
