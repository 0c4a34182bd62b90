"""Metrics of a run: what it computed, and apart from it, how long that took.

``metrics.jsonl`` holds only what follows from the recipe and the data, so that a
resumed run's file is bit for bit an undisturbed one's. Times, restarts and warnings
go to ``timing.jsonl``, which keeps every attempt.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bc2.errors import UsageError
from bc2.files import replace_durably

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics file; a last line cut off by a crash is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


class MetricsLog:
    """Appends to both files of a run folder; a row is visible at once to a reader."""

    def __init__(self, folder: Path, trackers: Sequence[Tracker] = ()):
        self.metrics = folder / METRICS
        self.timing = folder / TIMING
        self.trackers = trackers

    def reset(self, content: bytes) -> None:
        """Make ``metrics.jsonl`` what it was at a checkpoint."""
        replace_durably(self.metrics, content)

    def content(self) -> bytes:
        return self.metrics.read_bytes() if self.metrics.exists() else b""

    def row(self, **values: Any) -> None:
        """One row of results; a NaN or Inf of a bad step is written as text."""
        clean = {name: _finite(value) for name, value in values.items()}
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(_line(clean))
        for tracker in self.trackers:
            tracker.log(values)

    def time(self, event: str, **values: Any) -> None:
        """One row about the run itself, with the wall clock."""
        with self.timing.open("a", encoding="utf-8") as stream:
            stream.write(_line({"event": event, "time": time.time(), **values}))
        if event == "step":
            for tracker in self.trackers:
                tracker.log(values)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


class Tracker(Protocol):
    """Another place that metrics go to."""

    def log(self, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Scalars for `tensorboard --logdir`, below the run folder."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: Mapping[str, Any]) -> None:
        for name, value in _scalars(values):
            self.writer.add_scalar(name, value, int(values["step"]))

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases; offline where WANDB_MODE says so."""

    def __init__(self, folder: Path, name: str, recipe: Mapping[str, Any]):
        import wandb

        # Started anew, a run is another one there: W&B takes no step twice.
        attempt = sum(row["event"] == "start" for row in read_rows(folder / TIMING))
        self.run = wandb.init(
            project="bc2",
            name=name,
            dir=str(folder),
            config=dict(recipe),
            id=f"{folder.name}-{attempt}",
            resume="allow",
        )

    def log(self, values: Mapping[str, Any]) -> None:
        self.run.log(dict(_scalars(values)), step=int(values["step"]))

    def close(self) -> None:
        self.run.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raises: UsageError if a tracker is asked for and not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise _missing(name)


def _missing(name: str) -> UsageError:
    return UsageError(
        f"the {name} tracker is asked for and not installed", todo="pip install 'bc2[track]'"
    )


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if name != "step" and isinstance(value, int | float):
            yield name, float(value)


def open_trackers(
    names: Sequence[str], folder: Path, *, run: str, recipe: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers a recipe asks for."""
    return [
        TensorBoard(folder) if name == "tensorboard" else WandB(folder, run, recipe)
        for name in names
    ]
