"""A training run with nothing real in it but the loop, its models' bookkeeping and the guard.

A model is one number, a batch is one sample, a disk is a list. Two runs that do the same
arithmetic in the same order end in the same numbers, so that what is left out, made twice or
restored wrongly shows. Everything that happens is a line of `FakeRun.calls`.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from bc2.data.loader import Batch
from bc2.errors import BadTraining
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import StateSource
from bc2.registry import Position
from bc2.train.engines.base import Agreed, Engine, EngineState
from bc2.train.guard import Guard
from bc2.train.loop import Loop
from bc2.train.measured import Measured
from bc2.train.metric import Metric, Metrics
from bc2.train.objective import Loss
from bc2.train.run_config import GuardConfig
from bc2.train.schedule import Schedule, Speed
from bc2.train.signals import Stop
from bc2.train.snapshot import Snapshot
from bc2.train.speed.clock import Clock
from bc2.train.stream import BatchStream, StepData, StreamState
from bc2.train.trained_models import TrainedModel, TrainedModels

#: Samples of a step, each a micro-batch by itself; and tokens of a sample.
ROWS, WIDTH = 4, 3

METRICS = Metrics(
    (
        Metric("loss", "objective", headline=True),
        Metric("right", "pairs in order", over="pairs", guarded=True),
        Metric("size", "size of an answer", over="answers"),
        Metric("critic.right", "critic's pairs in order", over="pairs", guarded=True),
        Metric("critic.size", "size of a critic's answer", over="answers"),
        Metric("held", "held-out score", of="evaluation", headline=True, short="held"),
    )
)

WHOLE = TensorShard(())


class Killed(BaseException):
    """The process is gone: nothing that happens after it counts."""


def labels_of(sample: int) -> int:
    return 1 + sample % WIDTH


def pairs_of(sample: int) -> int:
    return 1 + sample % 2


def answers_of(sample: int) -> int:
    return 2 + sample % 5


def make_batch(sample: int, extra: int, *, tokens: int, pairs: int) -> Batch:
    """One sample; what is computed of it depends on `extra` too."""
    labels = np.full((1, WIDTH), -100)
    labels[0, :tokens] = extra
    return Batch(
        np.full((1, WIDTH), sample), labels, np.array([0, WIDTH], dtype=np.int32), WIDTH,
        tokens, np.array([sample % 2]), extra_weights={"pairs": pairs},
    )  # fmt: skip


def objective(role: str, run: FakeRun) -> Callable[..., Loss]:
    """Sums over a batch that depend on the weight, the data and torch's generator."""

    def call(weight: float, batch: Batch, clock: Clock | None = None) -> Loss:
        sample, extra = int(batch.tokens[0, 0]), float(batch.labels.max(initial=0))
        bad = run.bad.get((role, sample), "")
        total = batch.num_labels * (weight + sample / 7 + extra / 3 + float(torch.rand(())))
        sums = {
            "right": math.nan if bad == "metric" else weight + sample,
            "size": weight * answers_of(sample),
            "answers": float(answers_of(sample)),
            **run.further_sums,
        }
        return Loss(math.nan if bad == "loss" else total, sums)  # type: ignore[arg-type]

    return call


class FakeEngine(Engine):
    """One weight with one momentum; its gradient is the loss itself."""

    def __init__(self, role: str, run: FakeRun, mesh: Mesh):
        self.role, self.run, self.mesh, self.clock = role, run, mesh, Clock()
        self.weight, self.momentum, self.gradient = len(role) / 10, 0.0, 0.0

    def agree(self, weights: Mapping[str, float], computed: int, stop: bool) -> Agreed:
        """Of ranks with the same samples; another one may be the one that was stopped."""
        stop = stop or self.run.happens("other rank stops", self.run.loop.samples)
        return Agreed({name: float(value) for name, value in weights.items()}, computed, stop)

    def accumulate(
        self, batches: Iterable[Batch], objective: Any, *, divisor: float
    ) -> dict[str, float]:
        self.gradient, sums = 0.0, dict[str, float]()
        for batch in batches:
            sample = int(batch.tokens[0, 0])
            self.run.call("accumulate", self.role, sample)
            loss = objective(self.weight, batch, self.clock)
            self.gradient += loss.total / divisor
            if self.run.bad.get((self.role, sample)) == "gradient":
                self.gradient = math.inf
            for name, value in {"loss": loss.total, **loss.sums}.items():
                sums[name] = sums.get(name, 0.0) + value
            self.run.happens("accumulate", sample)
        return sums

    def gradient_norm(self) -> float:
        return abs(self.gradient)

    def update(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        self.run.call("update", self.role, learning_rate)
        clipped = self.gradient * min(1.0, clip_norm / (norm + 1e-6))
        self.momentum = self.momentum / 2 + clipped
        self.weight -= learning_rate * self.momentum
        self.run.happens(f"update {self.role}", self.run.loop.step + 1)
        self.gradient = 0.0

    def discard(self) -> None:
        self.gradient = 0.0

    def snapshot(self, *, frozen: bool = True) -> EngineState:
        state = EngineState()
        for held, value in ((state.weights, self.weight), (state.optimizer, self.momentum)):
            held.add("it", WHOLE, 0, torch.tensor([value], dtype=torch.float64))
        return state

    def restore(self, weights: StateSource, optimizer: StateSource) -> None:
        self.run.call("restore", self.role)
        self.weight, self.momentum = read(weights), read(optimizer)
        self.gradient = 0.0

    def held_tensors(self) -> Iterator[torch.Tensor]:
        yield from ()


def read(source: StateSource) -> float:
    return float(source.read("it", WHOLE, 0, 1))


class FakeStream(BatchStream):
    """Samples by their index; with a state, also by how many steps were given before."""

    sequences = ROWS

    def __init__(self, run: FakeRun, *, stateful: bool):
        self.run, self.stateful, self.given = run, stateful, 0

    @contextmanager
    def steps(self, first: int) -> Iterator[Iterator[StepData]]:
        self.run.call("open stream", first)
        yield self._steps(first)

    def _steps(self, first: int) -> Iterator[StepData]:
        while True:
            self.given += self.stateful
            noise = int(torch.randint(9, ())) if self.stateful else 0
            self.run.happens("give", first)
            empty = first in self.run.empty
            batches = [
                make_batch(
                    s, self.given + noise, tokens=0 if empty else labels_of(s),
                    pairs=0 if empty else pairs_of(s),
                )
                for s in range(first, first + ROWS)
            ]  # fmt: skip
            yield StepData(first, ROWS, batches, self.run.sources)
            first += ROWS

    def state(self) -> StreamState | None:
        if not self.stateful:
            return None
        return StreamState({"given": self.given}, {"last": np.array([self.given])})

    def restore(self, state: StreamState | None) -> None:
        assert (state is not None) == self.stateful
        if state is not None:
            assert state.arrays["last"].tolist() == [state.values["given"]]
            self.given = state.values["given"]


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk of a fake run; two of the same state are equal."""

    step: int
    samples: int
    scheduled: bool
    finished: bool
    facts: Mapping[str, Any] | None
    models: Mapping[str, tuple[float, float]]
    """Weight and momentum by role."""
    guard: tuple[Any, ...]
    stream: Any
    metrics: bytes
    random: bytes
    snapshot: Snapshot = field(compare=False, repr=False)

    @classmethod
    def of(
        cls, snapshot: Snapshot, scheduled: bool, finished: bool, facts: Mapping[str, Any] | None
    ) -> Saved:
        state = snapshot.state
        return cls(
            state.step, state.samples, scheduled, finished, facts,
            {r: (read(m.weights), read(m.optimizer)) for r, m in snapshot.models.items()},
            (state.recent, state.bad, state.rollbacks),
            dict(snapshot.stream.values) if snapshot.stream else None,
            snapshot.metrics, snapshot.random.numpy().tobytes(), snapshot,
        )  # fmt: skip

    @property
    def position(self) -> Position:
        return Position(self.step, self.samples * WIDTH)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.metrics.splitlines()]


class FakeSaver:
    """Publishes no sooner than somebody waits for it, or looks whether it failed."""

    def __init__(self, run: FakeRun, every: int):
        self.run = run
        self.latest = run.saves[-1] if run.saves else None
        anchors = [saved for saved in run.saves if saved.step % every == 0]
        self.anchor = anchors[-1] if anchors else None
        self.position = self.latest.position if self.latest else None
        self.broken = False
        self.under_way: Saved | None = None
        self.error: BaseException | None = None

    def at(self, step: int, samples: int) -> Position:
        return Position(step, samples * WIDTH)

    def save(self, snapshot: Snapshot, *, scheduled: bool, finished: bool, facts: Any) -> None:
        assert self.under_way is None, "the copies of the save before are not free yet"
        self.run.call("save", snapshot.state.step)
        self.under_way = Saved.of(snapshot, scheduled, finished, facts)
        self.position = self.under_way.position

    def failed(self) -> bool:
        self._publish()
        return self.error is not None

    def wait(self) -> Saved | None:
        self._publish()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.latest

    def load_anchor(self) -> Snapshot:
        self.wait()
        assert self.anchor is not None
        return self.anchor.snapshot

    def _publish(self) -> None:
        saved, self.under_way = self.under_way, None
        if saved is None or self.run.gone:
            return
        try:
            self.run.happens("publish", saved.step)
        except Exception as error:
            self.broken, self.error = True, error
            return
        self.latest = saved
        if saved.scheduled:
            self.anchor = saved
        # As a run finds them: by what was read, not by when they were saved.
        self.run.saves.append(saved)
        self.run.saves.sort(key=lambda saved: (saved.finished, saved.samples))


class FakeLog:
    """Both logs in memory."""

    def __init__(self, run: FakeRun):
        self.run, self.lines, self.times = run, list[bytes](), list[dict[str, Any]]()

    def reset(self, content: bytes) -> None:
        self.lines = content.splitlines(keepends=True)

    def content(self) -> bytes:
        return b"".join(self.lines)

    def row(self, **values: Any) -> None:
        self.rows([values])

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.run.happens("row", rows[0]["step"])
        for row in rows:
            text = {k: str(v) if v in (math.inf,) or v != v else v for k, v in row.items()}
            self.lines.append(json.dumps(text, allow_nan=False).encode() + b"\n")

    def time(self, event: str, **values: Any) -> None:
        self.times.append({"event": event, **values})

    def close(self) -> None:
        pass


@dataclass
class FakeRun:
    """A run of `total` steps that can be attempted again and again, each time from its saves."""

    total: int = 8
    save_every: int = 3
    eval_every: int = 4
    log_every: int = 1
    action: str = "skip"
    max_bad: int = 100
    roles: tuple[str, ...] = ("model",)
    divisor: str = "tokens"
    metrics: Metrics = METRICS
    stateful: bool = False
    evaluated: bool = True
    ranks: int = 1
    clip_norm: float = 3.0
    sources: tuple[str, ...] = ("even", "odd")
    bad: dict[tuple[str, int], str] = field(default_factory=dict)
    """Of a role and a sample, what is not finite: loss, gradient, metric."""
    empty: set[int] = field(default_factory=set)
    """First samples of steps in which nothing is to be learned."""
    spoiled: set[int] = field(default_factory=set)
    """Steps after which the evaluation is NaN."""
    further_sums: dict[str, float] = field(default_factory=dict)
    actions: dict[tuple[str, int], Callable[[], None]] = field(default_factory=dict)
    """What happens, once, at a moment: its name and a step or a sample."""
    saves: list[Saved] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    shown: list[tuple[float, str]] = field(default_factory=list)
    """What the progress was told."""
    gone: bool = False
    """Whether the process of this attempt was killed."""

    @property
    def declared(self) -> Metrics:
        """The metrics of the models that there are."""
        owners = {"", *self.roles}
        return Metrics(tuple(m for m in self.metrics.all if m.name.rpartition(".")[0] in owners))

    def attempt(self) -> Saved:
        """Train from the newest save to the end."""
        self.gone = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.loop = self._make_loop()
            result: Any = self.loop.run(self.saves[-1].snapshot if self.saves else None)
        return result

    def attempt_until_done(self, *expected: type[BaseException]) -> Saved:
        """Try as often as one of the expected errors ends an attempt.

        Raises:
            BadTraining: what would come to nothing again.
        """
        while True:
            try:
                return self.attempt()
            except BadTraining:
                raise
            except expected:
                assert len(self.calls) < 10_000, "it comes to no end"

    def _make_loop(self) -> Loop:
        mesh = Mesh(world=Group(tuple(range(self.ranks))))
        self.engines = {role: FakeEngine(role, self, mesh) for role in self.roles}
        self.stop, self.log = Stop(), FakeLog(self)
        peaks = {role: 0.1 * (number + 1) for number, role in enumerate(self.roles)}
        models = {
            role: TrainedModel(
                engine,
                objective(role, self),
                lambda step, role=role: peaks[role] / (step + 1),
                self.clip_norm,
            )
            for role, engine in self.engines.items()
        }
        return Loop(
            models=TrainedModels(models, self.declared, self.divisor),
            stream=FakeStream(self, stateful=self.stateful),
            schedule=Schedule(
                self.total, self.save_every, self.eval_every, self.log_every, lambda step: 0.0
            ),
            speed=Speed(1e-9, 1.0, lambda flops: None),
            guard=Guard(
                GuardConfig.model_validate({"action": self.action, "max_bad": self.max_bad}),
                self.declared.guarded,
            ),
            saver=FakeSaver(self, self.save_every),  # type: ignore[arg-type]
            log=self.log,
            evaluate=self._evaluate if self.evaluated else None,
            check_begin=lambda: None,
            progress=lambda advance, detail="": self.shown.append((advance, detail)),
            stop=self.stop,
            resume_command="bc2 toy",
            section="toy",
        )

    def _evaluate(self) -> Measured:
        step = self.loop.step
        self.call("evaluate", step)
        self.happens("evaluate", step)
        if self.ranks == 1:
            self.stop.check()
        held = self.engines["model"].weight + float(torch.rand(()))
        held = math.nan if step in self.spoiled else held
        return Measured(
            {"held": held}, f"held-out score {held:.3f}", [{"prompt": "?", "text": "!"}]
        )

    # -- what happens

    def call(self, *what: Any) -> None:
        self.calls.append(what)

    def happens(self, moment: str, at: int) -> bool:
        """Come to a moment; whether something was to happen then."""
        action = self.actions.pop((moment, at), None)
        if action is None or self.gone:
            return False
        action()
        return True

    def terminate(self) -> None:
        """As SIGTERM does."""
        self.stop.signum, self.stop.at = signal.SIGTERM, time.monotonic()

    def kill(self) -> NoReturn:
        self.gone = True
        raise Killed

    # -- what was seen

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the metrics as the last attempt left them."""
        return [json.loads(line) for line in self.log.lines]

    def events(self, *names: str) -> list[tuple[str, int]]:
        found = [(row["event"], row["step"]) for row in self.rows]
        return [(event, step) for event, step in found if not names or event in names]

    def made(self, *names: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] in names]


def failing(error: BaseException) -> Callable[[], NoReturn]:
    """An action that raises."""

    def fail() -> NoReturn:
        raise error

    return fail
