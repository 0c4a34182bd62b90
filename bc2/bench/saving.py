"""What a checkpoint costs a run: how long the loop waits, and steps during the save."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bc2.bench.contenders import Ours
from bc2.bench.spec import Spec
from bc2.parallel.mesh import Group, Mesh
from bc2.registry import Draft, Registry
from bc2.train.checkpoint import Saver, Snapshot, TrainerState, random_state

#: Steps that are timed at most while a save goes on.
MOST = 200


def save_while_training(
    ours: Ours, spec: Spec, timed: Callable[[], tuple[float, float]], steps: int
) -> dict[str, Any]:
    """Take a snapshot, publish it on a thread, and train until it is on disk.

    Args:
        ours: its state is saved.
        timed: makes a step; its seconds and loss.
        steps: steps that are timed before the save.

    Returns:
        ``wait_s`` the loop stood still; ``save_s`` until published; ``bytes`` written;
        ``lost_s``, that wait and what steps beside the save took longer;
        ``before_s`` and ``during_s`` seconds of each step before and during the save.
    """
    world = ours.mesh.world
    before = [timed()[0] for _ in range(steps)]
    with _shared_folder(Path(spec.shards).parent, world) as folder:
        saver = _saver(spec, folder, ours.mesh)
        done: list[float] = []
        began = time.perf_counter()
        held = ours.engine.snapshot()
        snapshot = Snapshot(TrainerState(1), held.weights, held.optimizer, b"", random_state())
        saver.save(snapshot)
        wait = time.perf_counter() - began
        with ThreadPoolExecutor(1) as waiting:
            saved = waiting.submit(saver.wait)
            saved.add_done_callback(lambda _: done.append(time.perf_counter()))
            during: list[float] = []
            while world.from_first(not saved.done() and len(during) < MOST):
                during.append(timed()[0])
            artifact = saved.result()
        assert artifact is not None
        size = sum(artifact.file(name).stat().st_size for name in artifact.files())
    # The last step began during the save and ended after it.
    usual = statistics.median(before)
    return {
        "wait_s": wait,
        "lost_s": wait + sum(during) - usual * len(during),
        "save_s": done[0] - began,
        "bytes": size,
        "before_s": before,
        "during_s": during[:-1] or during,
    }


@contextmanager
def _shared_folder(parent: Path, ranks: Group) -> Iterator[Path]:
    """A directory that the first rank makes, and removes when all are done with it."""
    with ExitStack() as held:
        folder = None
        if ranks.rank == 0:
            folder = held.enter_context(TemporaryDirectory(dir=parent, prefix="save-"))
        folder = ranks.from_first(folder)
        assert folder is not None
        yield Path(folder)
        ranks.each(None)


def _saver(spec: Spec, folder: Path, mesh: Mesh) -> Saver:
    tokenizer = folder / "tokenizer.model"
    if mesh.first:
        tokenizer.write_bytes(b"none")
    return Saver(
        Registry.open(folder / "home"),
        Draft(kind="checkpoint", name="bench", key="0" * 64),
        spec.model,
        tokenizer,
        tokens_per_sample=spec.training.sequence_length,
        keep=1,
        mesh=mesh,
    )
