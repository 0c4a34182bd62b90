"""The training loop. There is one, for every objective.

An algorithm brings a stream of steps and an objective; the engine makes the
updates; the guard says which steps must not be made; the saver publishes what is
needed to resume. What the loop computes depends on nothing else, so a run that is
killed and resumed computes what an uninterrupted run does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from bc2.console import Progress, note, warn
from bc2.data.loader import Batch
from bc2.errors import BadTraining, Bc2Error, Interrupted, ResourceError, RunFailed
from bc2.ranks import report_step
from bc2.registry import Artifact
from bc2.train.checkpoint import Saver, Snapshot, TrainerState, random_state
from bc2.train.engines.base import Engine
from bc2.train.guard import Guard
from bc2.train.log_rows import last_row
from bc2.train.objective import Objective
from bc2.train.pretrain.heldout import Measured
from bc2.train.run_log import Log
from bc2.train.schedule import Schedule, Speed
from bc2.train.signals import Stop, Stopped
from bc2.train.stream import BatchStream, StepData, StepSpan


@dataclass
class Loop:
    """One run of training. `run` is called once."""

    engine: Engine
    objective: Objective
    stream: BatchStream
    schedule: Schedule
    speed: Speed
    guard: Guard
    saver: Saver
    log: Log
    evaluate: Callable[[], Measured] | None
    progress: Progress
    stop: Stop
    resume_command: str
    step: int = 0
    samples: int = 0
    rollbacks: int = 0
    heldout: dict[str, Any] | None = None
    """The row of the last evaluation."""
    place: StepSpan | None = None
    """The step under way, or the one just made."""
    torn: bool = False
    """Whether weights, position and metrics do not belong together now, so must not be saved."""
    rewound: bool = False
    """Whether no step was made since a rollback, so that there is nothing new to save."""

    def run(self, start: Snapshot | None) -> Artifact:
        """Train to the end and publish the finished checkpoint.

        If something ends it early, the last completed step is saved first where possible.

        Raises:
            Interrupted: a signal came; the state is saved.
            RunFailed: too many bad steps, a bad one under ``action = "stop"``, no data for too
                long, or a model whose held-out loss is not finite at the end.
            DataError: samples could not be read.
            ResourceError: the disk is full; the last checkpoint is whole.
        """
        try:
            return self._run(start)
        except Interrupted:
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def _run(self, start: Snapshot | None) -> Artifact:
        try:
            self._begin(start)
            while self.step < self.schedule.total:
                with self.stream.steps(self.samples) as steps:
                    self._make_steps(steps)
            return self._finish()
        except Stopped:
            self._stop()

    def _begin(self, start: Snapshot | None) -> None:
        if start is None:
            self.log.reset(b"")
        else:
            self._restore(start)
            self.progress(self.step)
        self._evaluate_if_due()
        if start is None and self.guard.config.action == "rollback":
            # So that a rollback is possible from the first step on.
            self._save()

    def _make_steps(self, steps: Iterator[StepData]) -> None:
        """Make steps until the run ends or a rollback moves the position."""
        while self.step < self.schedule.total:
            began = time.perf_counter()
            last = self.samples + self.stream.sequences - 1
            self.place = StepSpan(self.step + 1, self.samples, last)
            with self._named(str(self.place)):
                with self.engine.clock.part("data"):
                    step = next(steps)
                measured = self._measure(step, self._agree(step))
                reason = self.guard.judge(measured["loss"], measured["grad_norm"])
                if reason is None:
                    self._accept(step, measured, began)
            if reason is not None and self._bad(step, reason) == "rewound":
                return
            self._pause()

    def _agree(self, step: StepData) -> float:
        """Supervised tokens of the step on all ranks. Raises: Stopped if one of them is to stop."""
        agreed = self.engine.agree(step.weights, step.computed, bool(self.stop))
        if agreed.stop:
            self.stop.follow()
        return agreed.weights["tokens"]

    def _measure(self, step: StepData, divisor: float) -> dict[str, float]:
        """Forward and backward of one optimizer step; no weight is changed."""
        if not divisor:
            raise RunFailed(
                f"no supervised token in samples {step.first} to {step.first + step.sequences - 1}",
                todo="look at the token shards: every label of the batch is masked",
            )
        sums = self.engine.accumulate(
            self._unless_stopped(step.batches), self.objective, divisor=divisor
        )
        measured = {name: value / divisor for name, value in sums.items()}
        norm = self.engine.gradient_norm()
        clipped = norm > self.schedule.clip_norm
        rate = self.schedule.learning_rate(self.step)
        return {**measured, "grad_norm": norm, "clipped": clipped, "lr": rate}

    def _unless_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The micro-batches; on a single rank a signal ends a long step between two of them."""
        for batch in batches:
            if self.engine.mesh.world.size == 1:
                self.stop.check()
            yield batch

    def _accept(self, step: StepData, measured: dict[str, float], began: float) -> None:
        logged = self.schedule.is_logged(self.step + 1)
        with self._changing():
            self.engine.update(
                measured["lr"], norm=measured["grad_norm"], clip_norm=self.schedule.clip_norm
            )
            self.guard.accept(measured["loss"])
            self._advance(step)
            if logged:
                span = [step.first, step.first + step.sequences - 1]
                self.log.row(**self._at("step"), samples=span, **measured)
        self._report(measured, time.perf_counter() - began, logged=logged)

    def _report(self, measured: dict[str, float], took: float, *, logged: bool) -> None:
        """Report how long a step took, in the log and in the progress line."""
        speed = self.speed.of(took)
        if logged:
            parts = self.engine.clock.take()
            self.log.time("step", step=self.step, step_s=took, **speed, parts=parts)
        heldout = f"  held-out {self.heldout['heldout_loss']:.3f}" if self.heldout else ""
        clipped = "*" if measured["clipped"] else ""
        self.progress(
            1,
            f"loss {measured['ce']:.3f}{heldout}  |g| {measured['grad_norm']:.2f}{clipped}  "
            f"lr {measured['lr']:.1e}  {speed['tokens_per_s']:,.0f} tok/s  "
            f"MFU {100 * speed['mfu']:.0f}%",
        )

    def _bad(self, step: StepData, reason: str) -> str:
        """Skip the step, roll back or stop; log and print the step, its samples and sources."""
        assert self.place is not None
        self.engine.discard()
        worst = max(self.guard.bad, self.rollbacks) + 1
        action = self.guard.config.action
        read = Counter[str]()
        for counts in self.engine.mesh.data.all_gather_object(step.sources):
            read.update(counts)
        facts = {
            "samples": [*self.place[1:]],
            "sources": dict(read.most_common()),
            "reason": reason,
        }
        self.log.time("bad", step=self.place.step, **facts)
        if action == "stop" or worst >= self.guard.config.max_bad:
            self._end_badly(facts, worst)
        sources = ", ".join(f"{name} {count}" for name, count in read.most_common())
        then = "skipped" if action == "skip" else "rolling back"
        warn(f"{reason} at {self.place} ({sources}): {then}")
        if action == "rollback":
            return self._roll_back(step, facts)
        with self._changing():
            self.guard.bad += 1
            self._advance(step)
            self.log.row(**self._at("skip"), **facts)
        self.progress(1)
        return "skipped"

    def _end_badly(self, facts: dict[str, Any], worst: int) -> NoReturn:
        """End the run at a bad step. The saved state is the one before it."""
        assert self.place is not None
        self._save_last_step()
        self.log.row(**{**self._at("stop"), "step": self.place.step}, **facts)
        raise BadTraining(
            f"{facts['reason']} (bad steps or rollbacks without progress: {worst})",
            where=str(self.place),
            todo="look at these samples; a higher pretrain.guard.max_bad goes on from the last "
            "checkpoint, another learning rate, action or max_rise is another run",
        )

    def _roll_back(self, step: StepData, facts: dict[str, Any]) -> str:
        """Go back to the last scheduled checkpoint, and leave out the data up to the bad step."""
        bad, rollbacks, at = self.guard.bad + 1, self.rollbacks + 1, self.step
        self.saver.wait()
        assert self.saver.anchor is not None, "a run that may roll back saves its beginning"
        with self.saver.anchor.hold():
            snapshot = Snapshot.load(self.saver.anchor, self.engine.mesh)
        self._restore(snapshot)
        self._evaluate_if_due()
        with self._changing():
            self.guard.bad, self.rollbacks, self.rewound = bad, rollbacks, True
            skipped = [self.samples, step.first + step.sequences - 1]
            self.samples = step.first + step.sequences
            row = {**facts, "samples": skipped, "from_step": at + 1}
            self.log.row(**self._at("rollback"), **row)
        self.progress(self.step - at)
        note(f"back at step {self.step}; samples {skipped[0]} to {skipped[1]} are left out")
        return "rewound"

    def _pause(self) -> None:
        """Between two steps: report a failed save, evaluate, save a checkpoint."""
        if self.saver.failed():
            self.saver.wait()
        if self.step >= self.schedule.total:
            return
        self._evaluate_if_due()
        if self.step % self.schedule.checkpoint_every == 0:
            began = time.perf_counter()
            with self._named(f"the checkpoint of step {self.step}"):
                self._save()
                self.log.time("save", step=self.step, wait_s=time.perf_counter() - began)

    def _stop(self) -> NoReturn:
        """After a signal: abandon the step under way, save, and raise Interrupted."""
        assert self.stop.signum is not None
        assert not self.torn
        self.engine.discard()
        self._save_last_step()
        self.saver.wait()
        self.log.time(
            "stop",
            step=self.step,
            next_sample=self.samples,
            signal=self.stop.signum,
            seconds=self.stop.seconds(),
        )
        raise Interrupted(
            f"stopped at step {self.step} of {self.schedule.total}; everything is saved",
            signum=self.stop.signum,
            todo=f"go on with: {self.resume_command}",
        ) from None

    def _fail(self, error: BaseException) -> None:
        """Save what can be saved before an error is raised on, and log the error."""
        try:
            self.engine.discard()
            # Ranks save together, and the others may not have failed.
            alone = self.engine.mesh.world.size == 1
            if alone and not (self.torn or self.saver.broken or isinstance(error, ResourceError)):
                self._save_last_step()
            if alone:
                self.saver.wait()
        except Exception as second:
            warn(f"and the state could not be saved: {second}")
        saved = self.saver.latest.position if self.saver.latest else None
        step = self.place.step if self.place else self.step
        samples = [*self.place[1:]] if self.place else None
        what = error.what if isinstance(error, Bc2Error) else repr(error)
        at = saved.step if saved else None
        try:
            self.log.time("fail", step=step, samples=samples, what=what, saved=at)
        except Bc2Error as second:
            warn(f"and this could not be logged: {second}")
        if saved:
            note(f"step {saved.step} is saved; go on from there with: {self.resume_command}")

    def _finish(self) -> Artifact:
        measured = self._evaluated()
        facts: dict[str, Any] | None = None
        if measured is not None:
            if not measured.finite:
                self._save_last_step()
            self._record(measured)
            if not measured.finite:
                raise BadTraining(
                    f"the held-out loss is {measured.facts['heldout_loss']} after the last step, "
                    "so the model is not published as finished",
                    todo="another learning rate or precision is another run",
                )
            # Not in the log, which is part of what a checkpoint's digest is of.
            facts = {**measured.facts, "heldout_sha256": measured.heldout_sha256}
        self._save(scheduled=False, finished=True, facts=facts)
        artifact = self.saver.wait()
        assert artifact is not None
        return artifact

    def _evaluate_if_due(self) -> None:
        """Evaluate where it is due, unless the metrics already have this evaluation."""
        due = self.step % self.schedule.eval_every == 0 and self.step < self.schedule.total
        if due and (self.heldout is None or self.heldout["step"] != self.step):
            measured = self._evaluated()
            if measured is not None:
                self._record(measured)

    def _evaluated(self) -> Measured | None:
        if self.evaluate is None:
            return None
        began = time.perf_counter()
        with self._named(f"the evaluation after step {self.step}"):
            measured = self.evaluate()
            self.log.time("eval", step=self.step, eval_s=time.perf_counter() - began)
        return measured

    def _record(self, measured: Measured) -> None:
        """Log all rows of an evaluation at once, so that there is all of it or nothing."""
        row = {**self._at("eval"), **measured.facts}
        samples = [{**self._at("sample"), **sample} for sample in measured.samples]
        with self._named(f"the evaluation after step {self.step}"):
            self.log.rows([row, *samples])
        self.heldout = row
        (note if measured.finite else warn)(f"step {self.step}: {measured}")

    def _save_last_step(self) -> None:
        """Save the last completed step, if there is one that is not saved."""
        saved = self.saver.position == self.saver.at(self.step, self.samples)
        if self.samples and not (saved or self.rewound):
            self._save(scheduled=self.step % self.schedule.checkpoint_every == 0)

    def _save(
        self,
        *,
        scheduled: bool = True,
        finished: bool = False,
        facts: dict[str, Any] | None = None,
    ) -> None:
        if scheduled:
            self.rollbacks = 0
        with self.engine.clock.part("save"):
            # Now and not in `save`: the copies go where those of the save before were.
            self.saver.wait()
            held = self.engine.snapshot()
            state = TrainerState(
                self.step, self.samples, list(self.guard.recent), self.guard.bad, self.rollbacks
            )
            snapshot = Snapshot(
                state,
                held.weights,
                held.optimizer,
                self.log.content(),
                random_state(),
                held.release,
            )
            self.saver.save(snapshot, scheduled=scheduled, finished=finished, facts=facts)

    def _restore(self, snapshot: Snapshot) -> None:
        with self._changing():
            self.engine.restore(snapshot.weights, snapshot.optimizer)
            self.guard.restore(snapshot.state.recent, snapshot.state.bad)
            self.step, self.samples = snapshot.state.step, snapshot.state.samples
            self.rollbacks = snapshot.state.rollbacks
            self.log.reset(snapshot.metrics)
            self.heldout = last_row(snapshot.metrics, "eval")
            torch.set_rng_state(snapshot.random)

    def _advance(self, step: StepData) -> None:
        self.step += 1
        report_step(self.step)
        self.samples = step.first + step.sequences
        self.rewound = False

    def _at(self, event: str) -> dict[str, Any]:
        return {"event": event, **vars(self.saver.at(self.step, self.samples))}

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """If the block fails, the state is torn."""
        self.torn = True
        yield
        self.torn = False

    @contextmanager
    def _named(self, place: str) -> Iterator[None]:
        """Add the place in the run to an error."""
        try:
            yield
        except Bc2Error as error:
            if error.where is None:
                error.where = place
            else:
                error.what += f", at {place}"
            raise
