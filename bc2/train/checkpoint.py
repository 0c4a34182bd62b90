"""Checkpoints: everything that a run needs to resume as if it had not been interrupted.

A checkpoint is a registered artifact. The loop hands over copies in host memory and
continues; a thread writes, syncs, digests and publishes them. What is not published
does not exist, so no reader can take half of one.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bc2.console import warn
from bc2.errors import Bc2Error, IntegrityError, from_os_error
from bc2.model.model_config import ModelConfig
from bc2.model.store import check_names, expected_shapes, save_config, weight_files
from bc2.parallel.agreement import check_sees, fail_together
from bc2.parallel.file_check import check_files_together, digest_files_together
from bc2.parallel.long_work import Pace, work_together
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import HeldTensors, Stored, TensorFile, index_of, write_fragments
from bc2.registry import Artifact, Draft, Position, Registry
from bc2.registry.manifest import FileEntry
from bc2.registry.staging import Staged
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE
from bc2.train.log_rows import METRICS

TRAINER = "trainer.json"
#: A tensor beside the optimizer's: torch's global generator.
RANDOM = "random_state"


@dataclass(frozen=True)
class TrainerState:
    """The position of a run. `samples` is the whole state of the loader."""

    step: int = 0
    """Optimizer steps made so far, skipped ones included."""
    samples: int = 0
    """Global index of the next sample."""
    recent: list[float] = field(default_factory=list)
    """Losses that the guard remembers."""
    bad: int = 0
    """Bad steps since the last accepted one."""
    rollbacks: int = 0
    """Rollbacks since the last scheduled checkpoint."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one step: this rank's part in host memory, or the files of all."""

    state: TrainerState
    weights: HeldTensors | Stored
    optimizer: HeldTensors | Stored
    metrics: bytes
    random: Tensor
    release: Callable[[], None] = lambda: None
    """Says that the tensors are on disk, so that the next snapshot may take their memory."""
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """Of all weights that are saved; None: those of the whole model, not of adapters alone."""

    @classmethod
    def load(cls, artifact: Artifact, mesh: Mesh | None = None) -> Snapshot:
        """Open a checkpoint, each file checked against its digest.

        Args:
            mesh: the ranks. Each checks some of the files; all of them call this, while none of
                them is saving.

        Raises:
            IntegrityError: a file is not what was published, or is not a training state; on
                every rank alike.
        """
        ranks = (mesh or Mesh()).side
        check_files_together(artifact, ranks)
        with fail_together(ranks):
            state = _trainer_state(artifact.path / TRAINER)
            names = artifact.files()
            weights, optimizer = (
                Stored.open([artifact.path / name for name in found])
                for found in (weight_files(names), _optimizer_files(names))
            )
            metrics = (artifact.path / METRICS).read_bytes()
        return cls(state, weights, optimizer, metrics, optimizer.whole(RANDOM))

    def write(
        self, folder: Path, config: ModelConfig, tokenizer: Path, mesh: Mesh
    ) -> list[FileEntry]:
        """Write into an empty directory. Every rank of `mesh` calls it, on a thread of its own.

        Returns:
            Size and digest of the files of tensors, on every rank.

        Raises:
            Exception: what any rank failed with, on every rank.
        """
        files = self._files()
        create = partial(self._create, folder, files, config, tokenizer)
        work_together(mesh.side, create if mesh.first else lambda pace: None)
        with fail_together(mesh.side):
            check_sees(folder / TRAINER, mesh.side)
        written = work_together(mesh.side, partial(self._write_tensors, folder, files))
        digests = _digests_of_all(_merged(written), folder, files, mesh.side)
        return [FileEntry(path=n, size=files[n].size, sha256=digests[n]) for n in sorted(files)]

    def _files(self) -> dict[str, TensorFile]:
        assert isinstance(self.weights, HeldTensors)
        assert isinstance(self.optimizer, HeldTensors)
        if RANDOM not in self.optimizer:
            self.optimizer.add(RANDOM, TensorShard(tuple(self.random.shape)), 0, self.random)
        return {**self.weights.files("model"), **self.optimizer.files("optimizer")}

    def _create(
        self, folder: Path, files: Mapping[str, TensorFile], config: ModelConfig, tokenizer: Path,
        pace: Pace,
    ) -> None:  # fmt: skip
        """Make the files of tensors, still empty, and write all others."""
        for name, file in files.items():
            # Where a file system cannot set room aside, each of its blocks is written.
            file.create(folder / name)
            pace.count(file.size)
        self._write_rest(folder, config, tokenizer)

    def _write_tensors(
        self, folder: Path, files: Mapping[str, TensorFile], pace: Pace
    ) -> dict[str, str]:
        """Write what this rank holds; the SHA-256 of the files that it wrote alone."""
        digests: dict[str, str] = {}
        for held in (self.weights, self.optimizer):
            assert isinstance(held, HeldTensors)
            digests |= write_fragments(folder, files, held.fragments, pace.count)
        return digests

    def _write_rest(self, folder: Path, config: ModelConfig, tokenizer: Path) -> None:
        assert isinstance(self.weights, HeldTensors)
        expected = expected_shapes(config) if self.shapes is None else self.shapes
        check_names(self.weights.shapes, expected, "state to save")
        weights = self.weights.files("model")
        if len(weights) > 1:
            (folder / "model.safetensors.index.json").write_bytes(index_of(weights))
        save_config(folder, config)
        (folder / TRAINER).write_text(json.dumps(asdict(self.state)), encoding="utf-8")
        (folder / METRICS).write_bytes(self.metrics)
        shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)


def _digests_of_all(
    found: dict[str, str], folder: Path, files: Mapping[str, TensorFile], ranks: Group
) -> dict[str, str]:
    """The SHA-256 of all files: the ranks share the reading of those that are not in `found`."""
    sizes = {name: files[name].size for name in sorted(files) if name not in found}
    return found | digest_files_together(folder, sizes, ranks) if sizes else found


def _merged(all_ranks: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {name: value for one in all_ranks for name, value in one.items()}


def _optimizer_files(names: Iterable[str]) -> list[str]:
    return sorted(n for n in names if n.startswith("optimizer") and n.endswith(".safetensors"))


def _trainer_state(path: Path) -> TrainerState:
    try:
        return TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise IntegrityError(f"not a trainer state: {error}", where=TRAINER) from None


def random_state() -> Tensor:
    """The state of torch's global generator on the CPU, for objectives that draw random numbers.

    Those of GPUs are not part of it: nothing that trains may draw there.
    """
    return torch.get_rng_state()


def reading_order(checkpoint: Artifact) -> tuple[int, str]:
    """A sort key: checkpoints of a run by the tokens read, never by the clock.

    Two with the same tokens differ at most in whether the evaluation at that step was
    already made; a run resumes alike from either.
    """
    return checkpoint.position.tokens if checkpoint.position else 0, checkpoint.digest


class Saver:
    """Publishes snapshots in the background, one at a time.

    Args:
        registry: where to.
        draft: kind, name, key, parents and recipe that all checkpoints of the run share.
        sequence_length: turns a position in samples into one in tokens.
        keep: how many checkpoints of the run stay registered; 0: all.
        latest: the checkpoint that the run resumes from.
        anchor: the newest checkpoint that was saved on schedule, which a rollback goes back
            to. One saved by a signal does not count, or an interrupted run would roll back
            to another step than an uninterrupted one.
        on_publish: called with each checkpoint as soon as it is published.
        mesh: the ranks that save together: each writes what it holds, the first publishes.
    """

    def __init__(
        self,
        registry: Registry,
        draft: Draft,
        config: ModelConfig,
        tokenizer: Path,
        *,
        sequence_length: int,
        keep: int,
        latest: Artifact | None = None,
        anchor: Artifact | None = None,
        on_publish: Callable[[Artifact], None] | None = None,
        mesh: Mesh | None = None,
    ):
        self.registry = registry
        self.draft = draft
        self.config = config
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.keep = keep
        self.latest = latest
        self.anchor = anchor
        self.position = latest.position if latest else None
        """Of the newest save, published or under way."""
        self.broken = False
        """Whether a save has failed."""
        self.mesh = mesh or Mesh()
        self._on_publish = on_publish
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        snapshot: Snapshot,
        *,
        scheduled: bool = True,
        finished: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Start publishing; waits only for a save that is still under way."""
        self.wait()
        state = snapshot.state
        draft = replace(
            self.draft,
            position=self.at(state.step, state.samples),
            finished=finished,
            facts={**self.draft.facts, **(facts or {})},
        )
        self.position = draft.position
        # Not a daemon: an exit waits for it rather than tearing the write.
        self._thread = threading.Thread(target=self._publish, args=(snapshot, draft, scheduled))
        self._thread.start()

    def wait(self) -> Artifact | None:
        """Wait until nothing is being saved; the newest checkpoint published by this run.

        Raises:
            Exception: whatever the save that was under way failed with.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.latest

    def at(self, step: int, samples: int) -> Position:
        """A position in the run as its checkpoints record it."""
        return Position(step, samples * self.sequence_length)

    def failed(self) -> bool:
        """Whether a save ended with an error that `wait` will raise."""
        return self._error is not None

    def _publish(self, snapshot: Snapshot, draft: Draft, scheduled: bool) -> None:
        try:
            self.latest = self._write(snapshot, draft)
            snapshot.release()
            if scheduled:
                self.anchor = self.latest
            if self.mesh.first:
                if self._on_publish is not None:
                    self._on_publish(self.latest)
                self._drop_old()
        except BaseException as error:
            self.broken = True
            self._error = _with_step(error, snapshot.state.step)

    def _write(self, snapshot: Snapshot, draft: Draft) -> Artifact:
        """Stage, write together, publish. If one rank fails, all raise its error."""
        side = self.mesh.side
        with ExitStack() as held:
            staged: Staged | None = None
            with fail_together(side):
                if self.mesh.first:
                    staged = held.enter_context(self.registry.stage(draft))
            folder = side.broadcast_object(staged.path if staged else None)
            assert folder is not None
            known = snapshot.write(folder, self.config, self.tokenizer, self.mesh)
            digest: str | None = None
            with fail_together(side):
                if staged is not None:
                    digest = staged.publish(known=known).digest
            digest = side.broadcast_object(digest)
            assert digest is not None
        return self.registry.get(digest)

    def _drop_old(self) -> None:
        """Unregister the run's older checkpoints, except tagged or needed ones.

        What this attempt saved last stays in any case: where ``--fresh`` trains a run anew,
        checkpoints of the earlier training may be further.
        """
        if not self.keep:
            return
        mine = [
            a
            for a in self.registry.list(
                "checkpoint", self.draft.name, key=self.draft.key, finished=False
            )
            if a.position and not a.tags
        ]
        mine.sort(key=reading_order)
        finished = self.latest is not None and self.latest.finished
        # A finished run does not roll back any more.
        needed = {a.digest for a in (self.latest, None if finished else self.anchor) if a}
        keep = self.keep - finished
        for artifact in mine[: max(0, len(mine) - keep)]:
            if artifact.digest in needed:
                continue
            try:
                self.registry.remove(artifact)
            except Bc2Error as error:
                # Another process uses it: it stays, and `registry gc` can remove it later.
                warn(f"kept {artifact.title}: {error}")


def _with_step(error: BaseException, step: int) -> BaseException:
    """The error of a save, with the step in its message."""
    if isinstance(error, OSError):
        error = from_os_error(error, "saving a checkpoint")
    if isinstance(error, Bc2Error):
        error.what += f", saving step {step}"
    return error
