"""TensorBoard and Weights & Biases: other places that the metrics of a run go to.

They are for people to look at, and hold each step once: when a run goes back to a checkpoint, so
do they. Nothing depends on them, so one that fails is left out and the run goes on.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bc2.console import warn
from bc2.errors import UsageError
from bc2.files import replace_durably
from bc2.train.logs.log_rows import METRICS, TIMING, LogRow, last_row, parse_row, read_rows
from bc2.train.logs.runs import RunFolder

if TYPE_CHECKING:
    from bc2.train.logs.event_files import EventFile

#: What a step computed, of ``timing.jsonl``; ``tokens`` is the run's position.
_COMPUTED = "step_tokens"

#: A file of the run's folder: the run at W&B that its metrics go to.
WANDB = "wandb.json"


class Tracker(Protocol):
    """Another place that metrics go to."""

    name: str

    def rewind(self, content: bytes) -> None:
        """Start, or go back to where ``metrics.jsonl`` had this content; it still has what was
        logged last."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """The trackers of a run, as one. One that fails is warned of, and left out from then on."""

    def __init__(self, trackers: Sequence[Tracker] = ()):
        self._working = list(trackers)

    def rewind(self, content: bytes) -> None:
        """As `Tracker.rewind`."""
        self._each(lambda tracker: tracker.rewind(content))

    def log(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row about a step or an evaluation; other rows have none to draw."""
        if self._working and (values := scalars(row)):
            self._each(lambda tracker: tracker.log(int(row["step"]), values))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in [*self._working]:
            try:
                act(tracker)
            except Exception as error:  # whatever a library or its network comes to
                self._working.remove(tracker)
                warn(
                    f"{tracker.name} failed and gets no more metrics of this run, which goes on: "
                    f"{error or type(error).__name__}; a resumed run tries it again"
                )


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by name, but for its position; none of a row of another kind."""
    if row["event"] not in ("step", "eval"):
        return {}
    # An evaluation follows the row of its step, which has the tokens.
    left_out = ("step",) + (("tokens",) if row["event"] == "eval" else ())
    return {
        name: float(value)
        for name, value in _without_clock(row).items()
        if name not in left_out and isinstance(value, int | float)
    }


def _without_clock(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of ``timing.jsonl`` as it goes beside one of ``metrics.jsonl``; others as they are."""
    if "time" not in row:
        return row
    names = {"tokens": _COMPUTED}
    clock = ("time", "elapsed")
    return {names.get(name, name): value for name, value in row.items() if name not in clock}


class TensorBoard:
    """Scalars for `tensorboard --logdir`, below the run folder: see `event_files`."""

    name = "TensorBoard"

    def __init__(self, folder: Path):
        self.folder = folder / "tensorboard"
        self._file: EventFile | None = None

    def rewind(self, content: bytes) -> None:
        from bc2.train.logs.event_files import EventFile

        self.close()
        step = _last_step(content)
        evaluated = last_row(content, "eval")
        again = () if evaluated and evaluated["step"] == step else self._of_evaluations()
        self._file = EventFile(self.folder, step, without=again)

    def _of_evaluations(self) -> set[str]:
        """What is never in a row of training: a run says what it measures before it logs."""
        measures = RunFolder(self.folder.parent).measures
        return {metric.name for metric in measures.of_evaluations}

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        assert self._file is not None, "a tracker is rewound before anything is logged"
        self._file.add(step, scalars)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class WandB:
    """Weights & Biases; offline where WANDB_MODE says so.

    What was logged there cannot be taken back: of a step that comes again W&B keeps the first
    values. So a run that lost steps goes on there as another run of the same group, which begins
    with all that is kept of the metrics. One that lost none goes on as the same; but not offline,
    where each attempt has files of its own, which must hold the whole.
    """

    name = "Weights & Biases"

    def __init__(self, folder: Path, name: str, recipe: Mapping[str, Any]):
        self.folder = folder
        self._run: Any = None
        self._settings = {
            "project": "bc2", "name": name, "dir": str(folder), "config": dict(recipe),
            "group": folder.name, "resume": "allow",
        }  # fmt: skip

    def rewind(self, content: bytes) -> None:
        import wandb

        self.close()
        path = self.folder / WANDB
        known = json.loads(path.read_bytes()) if path.exists() else {"number": 0, "offline": True}
        anew = known["offline"] or _written(self.folder / METRICS) != content
        number = known["number"] + anew
        # Before there is a run: another attempt must not take an id that may have been used.
        _keep(path, number, offline=True)
        self._run = wandb.init(id=f"{self.folder.name}-v{number}", **self._settings)
        if anew:
            for row in kept_rows(self.folder, content):
                self.log(int(row["step"]), scalars(row))
        _keep(path, number, offline=bool(self._run.offline))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _keep(path: Path, number: int, *, offline: bool) -> None:
    replace_durably(path, json.dumps({"number": number, "offline": offline}).encode())


def _written(metrics: Path) -> bytes:
    return metrics.read_bytes() if metrics.exists() else b""


def _last_step(content: bytes) -> int:
    """The step of the last row of ``metrics.jsonl``; -1 if it has none."""
    lines = content.splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else -1


def kept_rows(folder: Path, content: bytes) -> list[LogRow]:
    """The rows of a run's steps and evaluations up to a checkpoint, with their times."""
    last = _last_step(content)
    times = {
        row["step"]: _without_clock(row)
        for row in read_rows(folder / TIMING)
        if row["event"] == "step" and row["step"] <= last
    }
    rows: list[LogRow] = []
    for line in content.split(b"\n"):
        row = parse_row(line)
        if row is not None and row["event"] in ("step", "eval"):
            timed = times.get(row["step"], {}) if row["event"] == "step" else {}
            rows.append({**timed, **row})
    return rows


def check_trackers(names: Sequence[str]) -> None:
    """Raises: UsageError if a tracker is asked for and not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"the {name} tracker is asked for and not installed",
                todo="pip install 'bc2[track]'",
            )


def make_trackers(
    names: Sequence[str], folder: Path, *, run: str, recipe: Mapping[str, Any]
) -> Trackers:
    """The trackers a recipe asks for; they start at their first `rewind`."""
    made: dict[str, Callable[[], Tracker]] = {
        "tensorboard": partial(TensorBoard, folder),
        "wandb": partial(WandB, folder, run, recipe),
    }
    return Trackers([made[name]() for name in names])
