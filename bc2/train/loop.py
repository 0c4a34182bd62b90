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
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from bc2.console import Progress, note, warn
from bc2.data.loader import Batch
from bc2.errors import BadTraining, Bc2Error, Interrupted, ResourceError
from bc2.ranks import report_step
from bc2.registry import Artifact
from bc2.train import loop_messages as say
from bc2.train.checkpoint import Saver
from bc2.train.guard import Guard
from bc2.train.logs.log_rows import last_row
from bc2.train.logs.run_log import Log
from bc2.train.measured import Measured
from bc2.train.schedule import Schedule, Speed
from bc2.train.signals import Stop, Stopped
from bc2.train.snapshot import Snapshot, TrainerState, random_state
from bc2.train.stream import BatchStream, StepData, StepSpan, StreamState
from bc2.train.trained_models import TrainedModels

#: What ranks sum beside a step's weights: its FLOPs, and how many of them know of a failed save.
_FLOPS, _FAILED = " FLOPs", " failed saves"


@dataclass
class Loop:
    """One run of training. `run` is called once."""

    models: TrainedModels
    stream: BatchStream
    schedule: Schedule
    speed: Speed
    guard: Guard[Any]
    saver: Saver
    log: Log
    evaluate: Callable[[], Measured] | None
    check_begin: Callable[[], None]
    """Called before the first step of a run that does not go on from a checkpoint."""
    progress: Progress
    stop: Stop
    resume_command: str
    section: str
    """Of the recipe, for messages."""
    step: int = 0
    samples: int = 0
    rollbacks: int = 0
    evaluated: dict[str, Any] | None = None
    """The row of the last evaluation."""
    stream_state: StreamState | None = None
    """Of the stream after the last completed step."""
    random: Tensor = field(default_factory=random_state)
    """Of torch's generator after the last completed step or evaluation."""
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
                long, or a model whose evaluation is not finite at the end.
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
                    bad = self._make_steps(steps)
                # Not before: what reads ahead must not meet the stream's earlier state.
                if bad is not None:
                    self._roll_back(*bad)
            return self._finish()
        except Stopped:
            self._stop()

    def _begin(self, start: Snapshot | None) -> None:
        if start is None:
            self.log.reset(b"")
            self.check_begin()
            self.stream_state = self.stream.state()
        else:
            self._restore(start)
            # Its checkpoint may be removed long before the run ends.
            start.close()
            self.progress(self.step)
        self._evaluate_if_due()
        if start is None and self.guard.config.action == "rollback":
            # So that a rollback is possible from the first step on.
            self._save()

    def _make_steps(self, steps: Iterator[StepData]) -> tuple[StepData, dict[str, Any]] | None:
        """Make steps until the run ends, or one is to be rolled back, which is returned."""
        while self.step < self.schedule.total:
            began = time.perf_counter()
            last = self.samples + self.stream.sequences - 1
            self.place = StepSpan(self.step + 1, self.samples, last)
            with say.named(str(self.place)):
                with self.models.clock.part("data"):
                    step = next(steps)
                self.place = StepSpan(self.step + 1, step.first, step.first + step.sequences - 1)
                weights, computed, flops = self._agree(step)
                measured = self._measure(step, weights)
                reason = self.guard.judge(measured)
                if reason is None:
                    self._accept(step, measured)
                    self._report(measured, time.perf_counter() - began, computed, flops)
            facts = self._bad(step, reason) if reason is not None else None
            if facts is not None:
                return step, facts
            self._pause()
        return None

    def _agree(self, step: StepData) -> tuple[dict[str, float], int, float]:
        """Weights, computed tokens and FLOPs of the step on all ranks.

        Raises:
            Stopped: one of them is to stop.
        """
        several = self.models.mesh.world.size > 1
        failed = float(several and self.saver.failed())
        counted = {**step.weights, _FLOPS: self.speed.flops(step), _FAILED: failed}
        weights, computed, stop = self.models.agree(counted, step.computed, bool(self.stop))
        if weights.pop(_FAILED):
            # All ranks end together, whichever noticed first.
            self.saver.wait()
        if stop:
            self.stop.follow()
        return weights, computed, weights.pop(_FLOPS)

    def _measure(self, step: StepData, weights: dict[str, float]) -> dict[str, float]:
        """Forward and backward of one optimizer step; no weight is changed."""
        if self.models.divisor not in weights:
            known = ", ".join(weights)
            raise ValueError(f"batches have the weights {known}, and no {self.models.divisor}")
        if not weights[self.models.divisor]:
            raise say.no_weight(self.models.divisor, step)
        return self.models.measure(lambda: self._unless_stopped(step.batches), weights, self.step)

    def _unless_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The micro-batches; on a single rank a signal ends a long step between two of them."""
        for batch in batches:
            if self.models.mesh.world.size == 1:
                self.stop.check()
            yield batch

    def _accept(self, step: StepData, measured: dict[str, float]) -> None:
        """Make the step that was measured."""
        with self._changing():
            self.models.update(measured)
            self.guard.accept(measured)
            self._advance(step)
            if self.schedule.is_logged(self.step):
                span = [step.first, step.first + step.sequences - 1]
                self.log.row(**self._at("step"), samples=span, **measured)

    def _report(self, measured: dict[str, float], took: float, computed: int, flops: float) -> None:
        """Report how long the step just made took, in the log and in the progress line."""
        speed = self.speed.of(took, computed, flops)
        if self.schedule.is_logged(self.step):
            parts = self.models.clock.take()
            spent = {"step_s": took, "tokens": computed, **speed}
            self.log.time("step", step=self.step, **spent, parts=parts)
        line = say.progress_line(self.models.metrics, measured, self.evaluated, speed)
        self.progress(1, line)

    def _bad(self, step: StepData, reason: str) -> dict[str, Any] | None:
        """Skip the step or stop; log and print the step, its samples and sources.

        Returns:
            These, if the step is to be rolled back.
        """
        assert self.place is not None
        self.models.discard()
        worst = max(self.guard.bad, self.rollbacks) + 1
        action = self.guard.config.action
        sources = self._sources(step)
        facts = {"samples": [*self.place[1:]], "sources": sources, "reason": reason}
        self.log.time("bad", step=self.place.step, **facts)
        if action == "stop" or worst >= self.guard.config.max_bad:
            self._end_badly(facts, worst)
        then = "skipped" if action == "skip" else "rolling back"
        warn(say.bad_step_line(reason, self.place, sources, then))
        if action == "rollback":
            return facts
        with self._changing():
            self.guard.bad += 1
            self._advance(step)
            self.log.row(**self._at("skip"), **facts)
        self.progress(1)
        return None

    def _sources(self, step: StepData) -> dict[str, int]:
        """How many samples of the step each source gave, on all ranks, most first."""
        read = Counter[str]()
        for counts in self.models.mesh.data.all_gather_object(step.sources):
            read.update(counts)
        return dict(read.most_common())

    def _end_badly(self, facts: dict[str, Any], worst: int) -> NoReturn:
        """End the run at a bad step. The saved state is the one before it."""
        assert self.place is not None
        self._save_last_step()
        self.log.row(**{**self._at("stop"), "step": self.place.step}, **facts)
        raise say.too_bad(facts["reason"], worst, self.place, self.section)

    def _roll_back(self, step: StepData, facts: dict[str, Any]) -> None:
        """Go back to the last scheduled checkpoint, and leave out the data up to the bad step."""
        bad, rollbacks, at = self.guard.bad + 1, self.rollbacks + 1, self.step
        self._restore(self.saver.load_anchor())
        self._evaluate_if_due()
        with self._changing():
            self.guard.bad, self.rollbacks, self.rewound = bad, rollbacks, True
            skipped = [self.samples, step.first + step.sequences - 1]
            self.samples = step.first + step.sequences
            row = {**facts, "samples": skipped, "from_step": at + 1}
            self.log.row(**self._at("rollback"), **row)
        self.progress(self.step - at)
        note(f"back at step {self.step}; samples {skipped[0]} to {skipped[1]} are left out")

    def _pause(self) -> None:
        """Between two steps: report a failed save, evaluate, save a checkpoint."""
        if self.models.mesh.world.size == 1 and self.saver.failed():
            self.saver.wait()
        if self.step >= self.schedule.total:
            return
        self._evaluate_if_due()
        if self.step % self.schedule.checkpoint_every == 0:
            began = time.perf_counter()
            with say.named(f"the checkpoint of step {self.step}"):
                self._save()
                self.log.time("save", step=self.step, wait_s=time.perf_counter() - began)

    def _stop(self) -> NoReturn:
        """After a signal: abandon the step under way, save, and raise Interrupted."""
        assert self.stop.signum is not None
        assert not self.torn
        self.models.discard()
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
            self.models.discard()
            # Ranks save together, and the others may not have failed; but they all judge alike.
            together = self.models.mesh.world.size == 1 or isinstance(error, BadTraining)
            unsafe = self.torn or self.saver.broken or isinstance(error, ResourceError)
            if together and not unsafe:
                self._save_last_step()
            if together:
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
        if self.guard.bad >= self.step:
            self._save_last_step()
            raise say.none_good(self.step)
        measured = self._evaluated()
        facts: dict[str, Any] | None = None
        if measured is not None:
            if measured.broken:
                self._save_last_step()
            self._record(measured)
            if measured.broken:
                raise say.not_finite(self.models.metrics, measured)
            facts = {**measured.facts, **measured.recorded}
        self._save(scheduled=False, finished=True, facts=facts)
        artifact = self.saver.wait()
        assert artifact is not None
        return artifact

    def _evaluate_if_due(self) -> None:
        """Evaluate where it is due, unless the metrics already have this evaluation."""
        due = self.step % self.schedule.eval_every == 0 and self.step < self.schedule.total
        if due and (self.evaluated is None or self.evaluated["step"] != self.step):
            measured = self._evaluated()
            if measured is not None:
                self._record(measured)

    def _evaluated(self) -> Measured | None:
        if self.evaluate is None:
            return None
        began = time.perf_counter()
        with say.named(f"the evaluation after step {self.step}"):
            measured = self.evaluate()
            self.log.time("eval", step=self.step, eval_s=time.perf_counter() - began)
            self.models.metrics.check_evaluation(measured.facts)
        return measured

    def _record(self, measured: Measured) -> None:
        """Log all rows of an evaluation at once, so that there is all of it or nothing."""
        row = {**self._at("eval"), **measured.facts}
        samples = [{**self._at("sample"), **sample} for sample in measured.samples]
        warnings = [
            {**self._at("warning"), "code": code, "text": text}
            for code, text in measured.warnings.items()
        ]
        with say.named(f"the evaluation after step {self.step}"):
            self.log.rows([row, *samples, *warnings])
        self.evaluated, self.random = row, random_state()
        broken = f" (not finite: {', '.join(measured.broken)})" if measured.broken else ""
        (warn if broken else note)(f"step {self.step}: {measured}{broken}")
        for code, text in measured.warnings.items():
            warn(f"step {self.step}: {code}: {text}")

    def _save_last_step(self) -> None:
        """Save the last completed step, if there is one that is not saved."""
        saved = self.saver.position == self.saver.at(self.step, self.samples)
        if self.samples and not (saved or self.rewound):
            # After the last step an undisturbed run saves only its end.
            ended = self.step >= self.schedule.total
            self._save(scheduled=not ended and self.step % self.schedule.checkpoint_every == 0)

    def _save(
        self,
        *,
        scheduled: bool = True,
        finished: bool = False,
        facts: dict[str, Any] | None = None,
    ) -> None:
        if scheduled:
            self.rollbacks = 0
        with self.models.clock.part("save"):
            # Now and not in `save`: the copies go where those of the save before were.
            self.saver.wait()
            state = TrainerState(
                self.step, self.samples, list(self.guard.recent), self.guard.bad, self.rollbacks
            )
            snapshot = Snapshot.of(
                state,
                self.models.snapshot(),
                self.log.content(),
                self.stream_state,
                self.random,
            )
            self.saver.save(snapshot, scheduled=scheduled, finished=finished, facts=facts)

    def _restore(self, snapshot: Snapshot) -> None:
        with self._changing():
            self.models.restore(snapshot)
            self.stream.restore(snapshot.stream)
            self.stream_state = snapshot.stream
            self.guard.restore(snapshot.state.recent, snapshot.state.bad)
            self.step, self.samples = snapshot.state.step, snapshot.state.samples
            self.rollbacks = snapshot.state.rollbacks
            self.log.reset(snapshot.metrics)
            self.evaluated = last_row(snapshot.metrics, "eval")
            self.random = snapshot.random
            torch.set_rng_state(self.random)

    def _advance(self, step: StepData) -> None:
        self.step += 1
        report_step(self.step)
        self.samples = step.first + step.sequences
        self.stream_state, self.random = self.stream.state(), random_state()
        self.rewound = False

    def _at(self, event: str) -> dict[str, Any]:
        return {"event": event, **vars(self.saver.at(self.step, self.samples))}

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """If the block fails, the state is torn."""
        self.torn = True
        yield
        self.torn = False
