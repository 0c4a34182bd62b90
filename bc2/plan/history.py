"""Predicted memory beside measured memory, from the logs of earlier runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from bc2.train.logs.runs import RunFolder


@dataclass(frozen=True)
class MemoryRecord:
    """Predicted and measured memory of one attempt at a run."""

    run: str
    layout: str
    measure: str
    """What was measured: resident on the host, or allocated on a GPU."""
    predicted: int
    """Bytes."""
    measured: int

    @property
    def error(self) -> float:
        """Predicted over measured bytes, less 1."""
        return self.predicted / self.measured - 1

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error}


def memory_records(runs: Iterable[RunFolder]) -> list[MemoryRecord]:
    """Every "memory" row of the runs' ``timing.jsonl``, in the runs' order."""
    found = []
    for run in runs:
        rows = [row for row in run.timing() if row.get("event") == "memory"]
        found += [_record(run.path.name, row) for row in rows if row.get("measured")]
    return found


def _record(run: str, row: dict[str, Any]) -> MemoryRecord:
    layout = " ".join(f"{name}={value}" for name, value in row["layout"].items())
    predicted = int(row["predicted"]["total"])
    return MemoryRecord(run, layout, row["measure"], predicted, int(row["measured"]))
