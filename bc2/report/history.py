"""The logs of a run as columns, from which its curves and tables are drawn."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bc2.train.logs.log_rows import STEP_PARTS, LogRow
from bc2.train.logs.runs import Attempt, RunFolder, add_to_attempts, latest_attempts
from bc2.train.metric import MODEL_COLUMNS, Metric, Metrics, column_of_model
from bc2.train.speed.mfu import Floats, of_highest_peak

CurveAxis = Literal["tokens", "step"]

#: Events of metrics.jsonl about a step that was not made.
BAD = ("skip", "rollback", "stop")


def number(value: Any) -> float:
    """A measured value; NaN for one that is missing or was not finite."""
    if isinstance(value, bool | int | float):
        return float(value)
    return math.nan


class Columns:
    """Columns of numbers of equal length, filled row by row; eight bytes a value."""

    def __init__(self, *names: str):
        self._columns = {name: array("d") for name in names}

    def __len__(self) -> int:
        return max((len(column) for column in self._columns.values()), default=0)

    def __getitem__(self, name: str) -> Floats:
        return np.array(self._columns[name], dtype=np.float64)

    def names(self) -> list[str]:
        return list(self._columns)

    def add(self, row: LogRow) -> None:
        """Append the row's values of the known names, NaN where it has none."""
        for name, column in self._columns.items():
            column.append(number(row.get(name)))

    def widen(self, row: LogRow) -> None:
        """Like `add`; a new name begins a column, with NaN in the rows so far."""
        self.begin(*row)
        self.add(row)

    def begin(self, *names: str) -> None:
        """Begin the columns of new names, with NaN in the rows so far."""
        length = len(self)
        for name in names:
            if name not in self._columns:
                self._columns[name] = array("d", [math.nan]) * length


class BadSteps(dict[tuple[int, ...], LogRow]):
    """The bad steps of a training, by step and samples, from the rows of ``timing.jsonl``.

    ``metrics.jsonl`` has fewer: a rollback removes the rows before it. A step that is bad again
    after a resume is counted once.
    """

    def add(self, row: LogRow) -> None:
        """A row of ``timing.jsonl``, of any event."""
        if row["event"] == "start":
            self.clear()
        elif row["event"] == "bad":
            self[(row["step"], *row["samples"])] = row


@dataclass
class History:
    """The history of a run, without steps that a resume or a rollback undid.

    A rollback takes the step back and never the tokens; in ``metrics.jsonl`` the steps that it
    undid are gone. So steps rise along every column, and so do tokens, with a gap.
    """

    metrics: Metrics
    """What the run measures, each a column of `steps` or of `evals`."""
    steps: Columns = field(init=False)
    """And of each trained model what `MODEL_COLUMNS` name, in columns of the log's names."""
    evals: Columns = field(init=False)
    bad: list[LogRow] = field(default_factory=list)
    """Rows of what was done about bad steps: skipped, rolled back, or the run ended."""
    met: BadSteps = field(default_factory=BadSteps)
    """Every bad step there was."""
    samples: list[LogRow] = field(default_factory=list)
    """Texts that the model wrote during the run."""
    warnings: list[LogRow] = field(default_factory=list)
    """What evaluations warned of, by its ``code`` and in words."""
    attempts: list[Attempt] = field(default_factory=list)
    _times: Columns = field(
        default_factory=lambda: Columns(
            "step", "step_s", "tokens_per_s", "mfu", "flops", "attempt", "tokens"
        )
    )
    _parts: Columns = field(default_factory=Columns)
    _timed: int = 0

    def __post_init__(self) -> None:
        of_steps = (metric.name for metric in self.metrics.of_steps)
        of_evaluations = (metric.name for metric in self.metrics.of_evaluations)
        self.steps = Columns("step", "tokens", *of_steps, *MODEL_COLUMNS)
        self.evals = Columns("step", "tokens", *of_evaluations)

    @classmethod
    def read(cls, run: RunFolder) -> History:
        """The history of a run so far."""
        history = cls(run.measures)
        for row in run.metrics():
            history.add_metrics(row)
        for row in run.timing():
            history.add_timing(row)
        return history

    def add_metrics(self, row: LogRow) -> None:
        """A row of ``metrics.jsonl``."""
        if row["event"] == "step":
            self.steps.begin(*filter(column_of_model, row))
            self.steps.add(row)
        elif row["event"] == "eval":
            self.evals.add(row)
        elif row["event"] == "sample":
            self.samples.append(row)
        elif row["event"] == "warning":
            self.warnings.append(row)
        elif row["event"] in BAD:
            self.bad.append(row)

    def add_timing(self, row: LogRow) -> None:
        """A row of ``timing.jsonl``."""
        add_to_attempts(self.attempts, row)
        self.met.add(row)
        if row["event"] in ("start", "resume"):
            self._timed = row["step"]
        elif row["event"] == "step":
            # Parts are added up since the row before; after a rollback that is one step.
            steps = max(1, row["step"] - self._timed)
            self._timed = row["step"]
            self._times.add({**row, "attempt": len(self.attempts)})
            parts = row.get("parts", {})
            self._parts.widen({name: seconds / steps for name, seconds in parts.items()})

    def columns_of(self, metric: Metric) -> Columns:
        """The columns among which a metric is."""
        return self.steps if metric.of == "step" else self.evals

    def of_models(self, name: str) -> dict[str, Floats]:
        """What the steps tell of each trained model by one of `MODEL_COLUMNS`, by role.

        The product is first, and has no role: its name is empty.
        """
        columns = {column: column_of_model(column) for column in self.steps.names()}
        return {
            found[0]: self.steps[column]
            for column, found in columns.items()
            if found is not None and found[1] == name
        }

    def times(self) -> dict[str, Floats]:
        """Times of the steps that were not undone: ``step``, ``tokens``, ``tokens_per_s``, ``mfu``,
        ``step_s`` and the seconds of every part, per step, as ``parts.NAME``; and ``step_tokens``,
        what was computed in the step, NaN where the log does not say."""
        kept = self._not_undone()
        step = self._times["step"][kept]
        columns = {name: self._times[name][kept] for name in ("step", "step_s", "tokens_per_s")}
        columns["mfu"] = self._mfu()[kept]
        columns["step_tokens"] = self._times["tokens"][kept]
        names = sorted(self._parts.names(), key=lambda name: (*STEP_PARTS, name).index(name))
        parts = {f"parts.{name}": self._part(name)[kept] for name in names}
        return {**columns, **parts, "tokens": self.tokens_at(step)}

    def _mfu(self) -> Floats:
        """Of every attempt over the highest peak that it knew: each is at one machine."""
        flops, attempt, mfu = (self._times[name] for name in ("flops", "attempt", "mfu"))
        for one in np.unique(attempt):
            rows = attempt == one
            mfu[rows] = of_highest_peak(flops[rows], mfu[rows])
        return mfu

    def _part(self, name: str) -> Floats:
        column = self._parts[name]
        # Rows before the first that had parts are not in these columns.
        return np.concatenate([np.full(len(self._times) - len(column), np.nan), column])

    def _not_undone(self) -> NDArray[np.intp]:
        """Indices of the last time of each step: resumed runs make some steps twice."""
        step = self._times["step"]
        _, last = np.unique(step[::-1], return_index=True)
        kept: NDArray[np.intp] = np.sort(len(step) - 1 - last)
        return kept[np.isin(step[kept], self.steps["step"])]

    def tokens_at(self, step: Floats | float) -> Floats:
        """Tokens read by the end of a step."""
        known = self.steps["step"]
        if not len(known):
            return np.zeros_like(np.asarray(step, dtype=np.float64))
        # Nothing is read before the first step.
        at = np.concatenate([[0.0], known]) if known[0] > 0 else known
        tokens = self.steps["tokens"]
        tokens = np.concatenate([[0.0], tokens]) if known[0] > 0 else tokens
        return np.asarray(np.interp(step, at, tokens))

    def restarts(self, axis: CurveAxis) -> Floats:
        """Where each attempt after the first resumed."""
        steps = np.array([float(one.step) for one in latest_attempts(self.attempts)[1:]])
        return steps if axis == "step" else self.tokens_at(steps)
