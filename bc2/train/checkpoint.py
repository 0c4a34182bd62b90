"""Checkpoints: snapshots that are published while training continues.

A checkpoint is a registered artifact. The loop hands over copies in host memory and
continues; a thread writes, syncs, digests and publishes them. What is not published
does not exist, so no reader can take half of one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bc2.console import warn
from bc2.errors import Bc2Error, from_os_error
from bc2.model.model_config import ModelConfig
from bc2.parallel.agreement import fail_together
from bc2.parallel.mesh import Mesh
from bc2.registry import Artifact, Draft, Position, Registry
from bc2.registry.staging import Staged
from bc2.tokenizer.tokenizer_files import TOKENIZER_FILES
from bc2.train.snapshot import Snapshot


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
        configs: of the models, as in `Snapshot.models`.
        tokenizer: its file, ``tokenizer.model`` or ``tokenizer.json``.
        sequence_length: turns a position in samples into one in tokens.
        keep: how many checkpoints of the run stay registered; 0: all.
        latest: the checkpoint that the run resumes from.
        anchor: the newest checkpoint that was saved on schedule, which a rollback goes back
            to. One saved by a signal does not count, or an interrupted run would roll back
            to another step than an uninterrupted one.
        on_publish: called with each checkpoint as soon as it is published.
        write_beside: called by the first rank with the folder of a checkpoint that has all its
            files, to write further ones.
        mesh: the ranks that save together: each writes what it holds, the first publishes.
    """

    def __init__(
        self,
        registry: Registry,
        draft: Draft,
        configs: Mapping[str, ModelConfig],
        tokenizer: Path,
        *,
        sequence_length: int,
        keep: int,
        latest: Artifact | None = None,
        anchor: Artifact | None = None,
        on_publish: Callable[[Artifact], None] | None = None,
        write_beside: Callable[[Path], None] = lambda folder: None,
        mesh: Mesh | None = None,
    ):
        self.registry = registry
        self.draft = draft
        self.configs = configs
        if tokenizer.name not in TOKENIZER_FILES:
            raise ValueError(f"a tokenizer is called {' or '.join(TOKENIZER_FILES)}: {tokenizer}")
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
        self._write_beside = write_beside
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

    def load_anchor(self) -> Snapshot:
        """The checkpoint that a rollback goes back to, with all models; every rank calls it.

        Raises:
            IntegrityError: it is not what was published.
            Exception: whatever the save that was under way failed with.
        """
        self.wait()
        assert self.anchor is not None, "a run that may roll back saves its beginning"
        with self.anchor.hold():
            return Snapshot.load(self.anchor, self.mesh, [role for role in self.configs if role])

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
            known = snapshot.write(folder, self.configs, self.tokenizer, self.mesh)
            digest: str | None = None
            with fail_together(side):
                if staged is not None:
                    self._write_beside(folder)
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
