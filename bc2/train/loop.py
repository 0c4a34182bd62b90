"""The training loop. There is one, for every objective.

An algorithm brings a stream of steps and an objective; the engine knows how an
update is made; the guard says which steps must not be made; the saver keeps what
is needed to go on. What the loop computes depends on nothing but these, so a run
that is killed and resumed is the run that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bc2.console import Progress, note, warn
from bc2.errors import Interrupted, RunFailed
from bc2.registry import Artifact
from bc2.train.checkpoint import Saver, Snapshot, TrainerState, random_state
from bc2.train.engines.local import LocalEngine
from bc2.train.guard import Guard
from bc2.train.metrics import MetricsLog
from bc2.train.objective import Objective
from bc2.train.signals import Stop
from bc2.train.stream import Step


class Stream(Protocol):
    """Steps of any kind of data, from a global sample index on."""

    def steps(self, first: int) -> AbstractContextManager[Iterator[Step]]: ...


@dataclass(frozen=True)
class Schedule:
    """When things happen, in optimizer steps."""

    total: int
    checkpoint_every: int
    eval_every: int
    log_every: int
    learning_rate: Callable[[int], float]
    clip_norm: float


@dataclass(frozen=True)
class Speed:
    """What turns seconds into MFU."""

    tokens_per_step: int
    flops_per_token: float
    peak_flops: float


@dataclass
class Loop:
    """One run of training. `run` is called once."""

    engine: LocalEngine
    objective: Objective
    stream: Stream
    schedule: Schedule
    speed: Speed
    guard: Guard
    saver: Saver
    log: MetricsLog
    evaluate: Callable[[], dict[str, float]] | None
    progress: Progress
    stop: Stop
    resume_command: str
    step: int = 0
    samples: int = 0
    rollbacks: int = 0

    def run(self, start: Snapshot | None) -> Artifact:
        """Train to the end and publish the finished checkpoint.

        Raises:
            Interrupted: a signal came; the state is saved.
            RunFailed: too many bad steps, or a bad one under ``action = "stop"``.
        """
        self._begin(start)
        try:
            while self.step < self.schedule.total:
                with self.stream.steps(self.samples) as steps:
                    self._until_rewound(steps)
        except BaseException:
            self._finish_saving()
            raise
        return self._finish()

    def _begin(self, start: Snapshot | None) -> None:
        if start is not None:
            self._restore(start)
            self.progress(self.step)
        else:
            self.log.reset(b"")
            self._evaluate()
            if self.guard.config.action == "rollback":
                # Something to roll back to from the very first step.
                self._save()

    def _until_rewound(self, steps: Iterator[Step]) -> None:
        """Make steps until the run ends or a rollback moves the position."""
        while self.step < self.schedule.total:
            began = time.perf_counter()
            step = next(steps)
            data_s = time.perf_counter() - began
            reason, measured = self._make(step)
            if reason is None:
                self._accepted(step, measured, began, data_s)
            elif self._bad(step, reason) == "rewound":
                return
            self._pause()

    def _make(self, step: Step) -> tuple[str | None, dict[str, float]]:
        """One optimizer step, unless the guard forbids its update."""
        if not step.labels:
            raise RunFailed(
                f"no supervised token in samples {step.first} to {step.first + step.rows - 1}",
                todo="look at the token shards: every label of the batch is masked",
            )
        measured = self.engine.accumulate(step.batches, self.objective, tokens=step.labels)
        norm = self.engine.gradient_norm()
        reason = self.guard.judge(measured["loss"], norm)
        rate = self.schedule.learning_rate(self.step)
        if reason is None:
            self.engine.update(rate, norm=norm, clip_norm=self.schedule.clip_norm)
        clipped = norm > self.schedule.clip_norm
        return reason, {**measured, "grad_norm": norm, "clipped": clipped, "lr": rate}

    def _accepted(
        self, step: Step, measured: dict[str, float], began: float, data_s: float
    ) -> None:
        self.guard.accept(measured["loss"])
        self._advance(step)
        took = time.perf_counter() - began
        rate = self.speed.tokens_per_step / took
        mfu = rate * self.speed.flops_per_token / self.speed.peak_flops
        if self.step % self.schedule.log_every == 0 or self.step == self.schedule.total:
            span = [step.first, step.first + step.rows - 1]
            self.log.row(**self._at("step"), samples=span, **measured)
            self.log.time(
                "step", step=self.step, step_s=took, data_s=data_s, tokens_per_s=rate,
                flops=rate * self.speed.flops_per_token, mfu=mfu,
            )  # fmt: skip
        shown = f"loss {measured['ce']:.3f}  z {measured['z']:.2f}  |g| {measured['grad_norm']:.2f}"
        self.progress(
            1, f"{shown}  lr {measured['lr']:.1e}  {rate:,.0f} tok/s  MFU {100 * mfu:.0f}%"
        )

    def _bad(self, step: Step, reason: str) -> str:
        """Skip, roll back or stop, and say so with step and samples."""
        self.guard.bad += 1
        worst = max(self.guard.bad, self.rollbacks + 1)
        last = step.first + step.rows - 1
        place = f"step {self.step + 1}, samples {step.first} to {last}"
        action = self.guard.config.action
        self.engine.discard()
        self.log.time("bad", step=self.step + 1, samples=[step.first, last], reason=reason)
        if action == "stop" or worst >= self.guard.config.max_bad:
            self.log.row(**self._at("stop"), samples=[step.first, last], reason=reason)
            raise RunFailed(
                f"{reason} (bad steps or rollbacks without progress: {worst})",
                where=place,
                todo="look at these samples; a higher pretrain.guard.max_bad goes on from the last "
                "checkpoint, another learning rate, action or max_rise is another run",
            )
        warn(f"{reason} at {place}: {'skipped' if action == 'skip' else 'rolling back'}")
        if action == "rollback":
            return self._roll_back(step, reason)
        self._advance(step)
        self.progress(1)
        self.log.row(**self._at("skip"), samples=[step.first, last], reason=reason)
        return "skipped"

    def _roll_back(self, step: Step, reason: str) -> str:
        """Back to the last checkpoint, past everything read up to the bad step."""
        bad, at = self.guard.bad, self.step
        rollbacks = self.rollbacks + 1
        self.saver.wait()
        assert self.saver.anchor is not None, "a run that may roll back saves its beginning"
        with self.saver.anchor.hold():
            self._restore(Snapshot.load(self.saver.anchor))
        self.guard.bad = bad
        self.rollbacks = rollbacks
        skipped = [self.samples, step.first + step.rows - 1]
        self.samples = step.first + step.rows
        self.progress(self.step - at)
        self.log.row(**self._at("rollback"), samples=skipped, reason=reason, from_step=at + 1)
        note(f"back at step {self.step}; samples {skipped[0]} to {skipped[1]} are left out")
        return "rewound"

    def _pause(self) -> None:
        """What happens between steps: evaluation, checkpoints, signals, failed saves."""
        done = self.step >= self.schedule.total
        if self.saver.failed():
            self.saver.wait()
        if not done and self.step % self.schedule.eval_every == 0:
            self._evaluate()
        if self.stop and not done:
            self._leave()
        if not done and self.step % self.schedule.checkpoint_every == 0:
            began = time.perf_counter()
            self._save()
            self.log.time("save", step=self.step, wait_s=time.perf_counter() - began)

    def _leave(self) -> None:
        assert self.stop.signum is not None
        if self.saver.position_step() != self.step:
            self._save(scheduled=self.step % self.schedule.checkpoint_every == 0)
        self.saver.wait()
        self.log.time("stop", step=self.step, signal=self.stop.signum)
        raise Interrupted(
            f"stopped at step {self.step} of {self.schedule.total}; everything is saved",
            signum=self.stop.signum,
            todo=f"go on with: {self.resume_command}",
        )

    def _finish(self) -> Artifact:
        facts = self._evaluate()
        self._save(scheduled=False, finished=True, facts=facts)
        artifact = self.saver.wait()
        assert artifact is not None
        return artifact

    def _finish_saving(self) -> None:
        """Let a save in flight end, without hiding the error that is on its way."""
        try:
            self.saver.wait()
        except BaseException as error:
            warn(f"the checkpoint being saved failed too: {error}")

    def _evaluate(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        began = time.perf_counter()
        measured = self.evaluate()
        self.log.row(**self._at("eval"), **measured)
        self.log.time("eval", step=self.step, eval_s=time.perf_counter() - began)
        note(
            f"step {self.step}: held-out loss {measured['heldout_loss']:.4f} nats/token, "
            f"{measured['bits_per_byte']:.4f} bits/byte"
        )
        return measured

    def _save(
        self,
        *,
        scheduled: bool = True,
        finished: bool = False,
        facts: dict[str, float] | None = None,
    ) -> None:
        if scheduled:
            self.rollbacks = 0
        weights, optimizer = self.engine.snapshot()
        state = TrainerState(
            self.step, self.samples, list(self.guard.recent), self.guard.bad, self.rollbacks
        )
        snapshot = Snapshot(state, weights, optimizer, self.log.content(), random_state())
        self.saver.save(snapshot, scheduled=scheduled, finished=finished, facts=facts)

    def _restore(self, snapshot: Snapshot) -> None:
        self.engine.restore(snapshot.weights, snapshot.optimizer)
        self.guard.restore(snapshot.state.recent, snapshot.state.bad)
        self.step, self.samples = snapshot.state.step, snapshot.state.samples
        self.rollbacks = snapshot.state.rollbacks
        self.log.reset(snapshot.metrics)
        torch.set_rng_state(snapshot.random)

    def _advance(self, step: Step) -> None:
        self.step += 1
        self.samples = step.first + step.rows

    def _at(self, event: str) -> dict[str, Any]:
        tokens = self.samples * self.saver.tokens_per_sample
        return {"event": event, "step": self.step, "tokens": tokens}
