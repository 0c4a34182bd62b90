"""The current state of a run, kept up to date row by row: what `bc2 watch` shows."""

from __future__ import annotations

import math
import statistics
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bc2.registry import Registry
from bc2.report.history import BadSteps, number
from bc2.train.logs.log_rows import METRICS, TIMING, LogFollower, LogRow
from bc2.train.logs.runs import (
    Attempt,
    RunFolder,
    State,
    add_to_attempts,
    latest_attempts,
    state_at_end,
)
from bc2.train.metric import Metric, column_of_model
from bc2.train.pretrain.pretrain_metrics import WATCH_KEYS
from bc2.train.speed.mfu import IMPOSSIBLE, impossible, of_highest_peak

#: Steps that recent speeds and shares are taken over.
RECENT = 100

Visitor = Callable[[LogRow], None]


def _ignore(_: LogRow) -> None:
    """The visitor of callers that need only the status."""


class Status:
    """The state of one run, followed through its two growing files.

    Args:
        run: the run's folder.
        registry: tells whether the run's finished checkpoint is there.

    Raises:
        DataError: ``run.json`` is not what a run writes; also of `update`.
    """

    def __init__(self, run: RunFolder, registry: Registry):
        self.run = run
        self.registry = registry
        self.alive = False
        self.metrics = run.measures
        self.attempts: list[Attempt] = []
        self._metrics = LogFollower(run.path / METRICS)
        self._timing = LogFollower(run.path / TIMING)
        self._forget_metrics()
        self._forget_timing()

    def update(self, on_metrics: Visitor = _ignore, on_timing: Visitor = _ignore) -> None:
        """Read what was appended since the last call.

        Args:
            on_metrics: also gets each row of ``metrics.jsonl``.
            on_timing: also gets each row of ``timing.jsonl``.
        """
        # Asked first: a run that has ended by now has written all its rows.
        self.alive = self.run.running()
        declared = self.run.measures
        if declared != self.metrics:  # the run has begun only now, or anew
            self.metrics = declared
            self._metrics.close()
            self._metrics = LogFollower(self.run.path / METRICS)
        if self._metrics.is_new():
            self._forget_metrics()
        for row in self._metrics.rows():
            self.add_metrics(row)
            on_metrics(row)
        if self._timing.is_new():
            self._forget_timing()
        for row in self._timing.rows():
            self.add_timing(row)
            on_timing(row)

    def _forget_metrics(self) -> None:
        self.headline = array("d")
        self.values: dict[str, Any] = {}
        self.best: dict[str, float] = {}
        self.models: dict[str, dict[str, Any]] = {"": {}}
        self.clipped: dict[str, deque[bool]] = {}
        self.last: LogRow = {}
        self.warnings: list[LogRow] = []

    def _forget_timing(self) -> None:
        self.attempts = []
        self.bad = BadSteps()
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self.times: deque[LogRow] = deque(maxlen=RECENT)

    def add_metrics(self, row: LogRow) -> None:
        """A row of ``metrics.jsonl``."""
        self.last = row
        if row["event"] == "step":
            self.headline.append(number(row.get(self.metrics.headline.name)))
            self._take(self.metrics.of_steps, row)
            for column, value in row.items():
                if found := column_of_model(column):
                    self._take_of_model(*found, value)
        elif row["event"] == "eval":
            self._take(self.metrics.of_evaluations, row)
            for metric in self.metrics.of_evaluations:
                self._compare(metric, number(row.get(metric.name)))
            self.warnings = []  # its own follow it
        elif row["event"] == "warning":
            self.warnings.append(row)

    def _take_of_model(self, role: str, name: str, value: Any) -> None:
        self.models.setdefault(role, {})[name] = value
        if name == "clipped":
            self.clipped.setdefault(role, deque(maxlen=RECENT)).append(bool(value))

    def _take(self, metrics: Iterable[Metric], row: LogRow) -> None:
        """Keep the last value of each; not every row has all of them."""
        self.values |= {m.name: row[m.name] for m in metrics if m.name in row}

    def _compare(self, metric: Metric, value: float) -> None:
        if metric.better is None or math.isnan(value):
            return
        best = min if metric.better == "lower" else max
        self.best[metric.name] = best(self.best.get(metric.name, value), value)

    def add_timing(self, row: LogRow) -> None:
        """A row of ``timing.jsonl``."""
        add_to_attempts(self.attempts, row)
        self.bad.add(row)
        if row["event"] in ("start", "resume"):
            self._begin_attempt()
        elif row["event"] == "step":
            if self.times and row["step"] <= self.times[-1]["step"]:
                # Rolled back: the times so far say nothing about the steps to come.
                self.times.clear()
            self.times.append(row)

    @property
    def state(self) -> State:
        """Running, or how the last attempt ended."""
        if self.alive:
            return State("running")
        end = state_at_end(self.attempts[-1].end if self.attempts else None)
        if end.name != "died":
            return end
        if self._is_registered():
            return State("finished")
        if self.last.get("event") == "stop":
            return State("failed", self.last["reason"])
        return end

    def _is_registered(self) -> bool:
        """Whether the run was killed only after its finished checkpoint was published."""
        facts = self.run.facts
        if facts is None or self.step < facts.steps:
            return False
        return self.registry.find("checkpoint", facts.key, finished=True) is not None

    @property
    def step(self) -> int:
        return int(self.last.get("step", 0))

    @property
    def restarts(self) -> int:
        return max(0, len(latest_attempts(self.attempts)) - 1)

    @property
    def seconds(self) -> float:
        """Seconds of training, over all attempts."""
        return sum(attempt.seconds for attempt in latest_attempts(self.attempts))

    def seconds_left(self) -> float | None:
        """Seconds to the end at the pace of the recent steps, with evaluations and saves."""
        facts = self.run.facts
        if facts is None or not self.times or not self.alive:
            return None
        return max(0, facts.steps - self.step) * self._seconds_a_step()

    def _tokens_total(self) -> int | None:
        """Tokens read at the end of the run; rollbacks read more than the steps tell."""
        facts = self.run.facts
        if facts is None:
            return None
        left = (facts.steps - self.step) * facts.batch_tokens
        return int(self.last.get("tokens", 0)) + left

    def _seconds_a_step(self) -> float:
        first, last = self.times[0], self.times[-1]
        if last["step"] > first["step"] and "elapsed" in last and "elapsed" in first:
            return float((last["elapsed"] - first["elapsed"]) / (last["step"] - first["step"]))
        return float(statistics.median(row["step_s"] for row in self.times))

    def share(self, part: str) -> float | None:
        """The share of the recent steps' measured time that went to a part."""
        parts = [row.get("parts", {}) for row in self.times]
        total = sum(sum(seconds.values()) for seconds in parts)
        return float(sum(seconds.get(part, 0.0) for seconds in parts) / total) if total else None

    def recent(self, name: str) -> float | None:
        """The median of a column of ``timing.jsonl`` over the recent steps."""
        values = [row[name] for row in self.times if name in row]
        return float(statistics.median(values)) if values else None

    def recent_mfu(self) -> float | None:
        """The median MFU of the recent steps, all over the highest peak that they knew."""
        rows = [row for row in self.times if "mfu" in row]
        flops = np.array([number(row.get("flops")) for row in rows])
        shares = of_highest_peak(flops, np.array([number(row["mfu"]) for row in rows]))
        return float(np.median(shares)) if rows else None

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON data; None where nothing was logged yet."""
        facts, state, mfu = self.run.facts, self.state, self.recent_mfu()
        measured, models = self._measured(), {role: self._model(role) for role in self.models}
        product = models.pop("")
        return {
            "run": self.run.path.name,
            "path": str(self.run.path),
            "state": state.name,
            "detail": state.detail,
            "step": self.step,
            "steps": facts.steps if facts else None,
            "tokens": self.last.get("tokens", 0),
            "tokens_total": self._tokens_total(),
            **{key: measured.get(name, {}).get(what) for key, (name, what) in WATCH_KEYS.items()},
            "grad_norm": product["grad_norm"],
            "clip_norm": facts.clip_norm if facts else None,
            "clipped_share": product["clipped_share"],
            "learning_rate": product["learning_rate"],
            "tokens_per_s": self.recent("tokens_per_s"),
            "mfu": mfu,
            "mfu_note": IMPOSSIBLE if impossible(mfu) else None,
            "data_share": self.share("data"),
            "save_share": self.share("save"),
            "seconds": self.seconds,
            "seconds_left": self.seconds_left(),
            "restarts": self.restarts,
            "bad_steps": len(self.bad),
            "last_bad": list(self.bad.values())[-1] if self.bad else None,
            "warnings": [{key: row[key] for key in ("code", "text")} for row in self.warnings],
            "metrics": measured,
            "other_models": models,
            "step_tokens": self.recent("tokens"),
        }

    def _measured(self) -> dict[str, dict[str, Any]]:
        """What is declared of each metric, its last value, and of an evaluation's its best."""
        return {metric.name: self._figure(metric) for metric in self.metrics.all}

    def _figure(self, metric: Metric) -> dict[str, Any]:
        best = {"best": self.best.get(metric.name)} if metric.of == "evaluation" else {}
        return {
            "value": self.values.get(metric.name),
            **best,
            "label": metric.label,
            "unit": metric.unit,
            "of": metric.of,
            "over": metric.over,
            "better": metric.better,
            "headline": metric.headline,
        }

    def _model(self, role: str) -> dict[str, Any]:
        """The last gradient norm and learning rate of a trained model."""
        last = self.models[role]
        return {
            "grad_norm": last.get("grad_norm"),
            "clipped_share": _mean(self.clipped.get(role, ())),
            "learning_rate": last.get("lr"),
        }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
