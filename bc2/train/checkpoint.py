"""Checkpoints: everything a run needs to go on as if nothing had happened.

A checkpoint is a registered artifact. The loop hands over copies in host memory and
goes on; a thread writes, syncs, digests and publishes them. What is not published
does not exist, so no reader can take half of one.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bc2.console import warn
from bc2.errors import Bc2Error, IntegrityError, from_os_error
from bc2.model.config import ModelConfig
from bc2.model.store import save_model, save_tensors
from bc2.registry import Artifact, Draft, Position, Registry
from bc2.tokenizer.config import TOKENIZER_FILE
from bc2.train.metrics import METRICS

OPTIMIZER = "optimizer.safetensors"
TRAINER = "trainer.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands. `samples` is the whole state of the loader."""

    step: int = 0
    """Optimizer steps behind it, skipped ones included."""
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
    """One moment of a run, in host memory."""

    state: TrainerState
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    metrics: bytes
    random: Tensor

    @classmethod
    def load(cls, artifact: Artifact) -> Snapshot:
        """Read a checkpoint, each file checked against its digest.

        Raises:
            IntegrityError: a file is not what was published, or is not a training state.
        """
        optimizer = load_file(artifact.file(OPTIMIZER))
        random = optimizer.pop("random_state")
        try:
            state = TrainerState(**json.loads(artifact.file(TRAINER).read_text()))
        except (TypeError, ValueError) as error:
            raise IntegrityError(f"not a trainer state: {error}", where=TRAINER) from None
        weights = load_file(artifact.file(WEIGHTS))
        return cls(state, weights, optimizer, artifact.file(METRICS).read_bytes(), random)

    def write(self, folder: Path, config: ModelConfig, tokenizer: Path) -> None:
        save_model(folder, config, self.weights)
        save_tensors({**self.optimizer, "random_state": self.random}, folder / OPTIMIZER)
        (folder / TRAINER).write_text(json.dumps(asdict(self.state)))
        (folder / METRICS).write_bytes(self.metrics)
        shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)


def random_state() -> Tensor:
    """torch's global generator, part of the state for objectives that draw."""
    return torch.get_rng_state()


def reading_order(checkpoint: Artifact) -> tuple[int, str]:
    """Sorts a run's checkpoints by the data behind them, and never by the clock.

    Two with the same data behind them differ at most in whether the evaluation there was
    made, and a run goes on alike from either.
    """
    return checkpoint.position.tokens if checkpoint.position else 0, checkpoint.digest


class Saver:
    """Publishes snapshots in the background, one at a time.

    Args:
        registry: where to.
        draft: kind, name, key, parents and recipe that all checkpoints of the run share.
        tokens_per_sample: to say a position in tokens.
        keep: how many checkpoints of the run stay registered; 0: all.
        latest: the checkpoint that the run goes on from.
        anchor: the newest checkpoint that was saved on schedule: what a rollback goes back
            to. One saved by a signal is not, or a disturbed run would roll back elsewhere.
        on_publish: told of each checkpoint as soon as it exists.
    """

    def __init__(
        self,
        registry: Registry,
        draft: Draft,
        config: ModelConfig,
        tokenizer: Path,
        *,
        tokens_per_sample: int,
        keep: int,
        latest: Artifact | None = None,
        anchor: Artifact | None = None,
        on_publish: Callable[[Artifact], None] | None = None,
    ):
        self.registry = registry
        self.draft = draft
        self.config = config
        self.tokenizer = tokenizer
        self.tokens_per_sample = tokens_per_sample
        self.keep = keep
        self.latest = latest
        self.anchor = anchor
        self.position = latest.position if latest else None
        """Of the newest save: published, or going on."""
        self.broken = False
        """Whether a save has failed."""
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
        """Start publishing; waits only for a save that is still going on."""
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
            Exception: whatever the save that was going on failed with.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.latest

    def at(self, step: int, samples: int) -> Position:
        """A place in the run as its checkpoints name it."""
        return Position(step, samples * self.tokens_per_sample)

    def failed(self) -> bool:
        """Whether a save ended with an error that `wait` will raise."""
        return self._error is not None

    def _publish(self, snapshot: Snapshot, draft: Draft, scheduled: bool) -> None:
        try:
            with self.registry.stage(draft) as staged:
                snapshot.write(staged.path, self.config, self.tokenizer)
                self.latest = staged.publish()
            if scheduled:
                self.anchor = self.latest
            if self._on_publish is not None:
                self._on_publish(self.latest)
            self._drop_old()
        except BaseException as error:
            self.broken = True
            self._error = _explained(error, snapshot.state.step)

    def _drop_old(self) -> None:
        """Unregister the run's older checkpoints, except tagged or needed ones.

        What this attempt saved last stays in any case: one of an earlier attempt that is
        being trained anew may be further.
        """
        if not self.keep:
            return
        mine = [
            a
            for a in self.registry.list("checkpoint", self.draft.name)
            if a.key == self.draft.key and a.position and not a.finished and not a.tags
        ]
        mine.sort(key=reading_order)
        needed = {a.digest for a in (self.latest, self.anchor) if a is not None}
        keep = self.keep - (1 if self.latest is not None and self.latest.finished else 0)
        for artifact in mine[: max(0, len(mine) - keep)]:
            if artifact.digest in needed:
                continue
            try:
                self.registry.remove(artifact)
            except Bc2Error as error:
                # In use by somebody: it stays, and `registry gc` can take it later.
                warn(f"kept {artifact.title}: {error}")


def _explained(error: BaseException, step: int) -> BaseException:
    """What a save failed with, with the step in it."""
    if isinstance(error, OSError):
        error = from_os_error(error, "saving a checkpoint")
    if isinstance(error, Bc2Error):
        error.what += f", saving step {step}"
    return error
