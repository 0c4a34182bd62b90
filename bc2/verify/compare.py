"""Two runs of one recipe: the same to the bit, or as near as rounding lets them be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bc2.parallel.state import MappedTensors, TensorFile
from bc2.registry import Artifact
from bc2.train.logs.log_rows import METRICS, LogRow, read_rows
from bc2.train.metric import Metric, Metrics

#: How far losses of another layout may be apart, relative, by precision: sums are rounded in
#: another order, and a bf16 number has 8 bits where one of fp32 has 24.
TOLERANCES = {"fp32": 1e-5, "bf16": 1e-2}


@dataclass(frozen=True)
class Comparison:
    """What was compared, on which layout, how, and the first difference."""

    what: str
    on: str
    by: str
    """``bits``, or a tolerance."""
    difference: str | None
    """The first one; None: there is none."""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        return self.difference is None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "same": self.same}


def metrics_of(artifact: Artifact) -> list[LogRow]:
    """What a run logged of its results."""
    return list(read_rows(artifact.path / METRICS))


def samples_of(rows: list[LogRow]) -> list[int]:
    """Global indices of the samples of each step, in the order they were trained on."""
    spans = [row["samples"] for row in rows if row["event"] == "step"]
    return [index for first, last in spans for index in range(first, last + 1)]


def compare_bits(straight: Artifact, other: Artifact) -> tuple[str | None, dict[str, Any]]:
    """The first difference between two finished checkpoints, and what there is in them."""
    rows = metrics_of(straight)
    figures = {
        "digest": straight.digest,
        "digest_of_other": other.digest,
        "rows": len(rows),
        "samples": len(samples_of(rows)),
        "files": len(straight.files()),
        "bytes": straight.manifest.size,
    }
    found = first_row(rows, metrics_of(other)) or first_file(straight, other)
    if found is None and straight.digest != other.digest:
        found = f"the digests {straight.ref} and {other.ref}"
    return found, figures


def compare_losses(
    straight: Artifact, other: Artifact, metrics: Metrics, since: int, tolerance: float
) -> tuple[str | None, dict[str, Any]]:
    """The first difference in samples or losses of runs on two layouts, and figures.

    Losses are the metrics that are better when lower, or all where none is. Other metrics follow
    from the same forward passes and may not be judged by a relative tolerance: a difference is
    near 0 as often as not, and a share jumps by a whole sample. How far they are apart is told.

    Args:
        metrics: what the runs measure.
        since: the step after which the layouts differ, for the figures.
        tolerance: of losses, relative.
    """
    # Text is sampled only where a rank has the whole model.
    mine, theirs = (
        [row for row in metrics_of(one) if row["event"] != "sample"] for one in (straight, other)
    )
    losses = _losses_of(metrics)
    others = [metric for metric in metrics.all if metric not in losses]
    apart = _losses_apart(mine, theirs, losses)
    worst, at = max((far, row["step"]) for far, row in apart) if apart else (0.0, 0)
    figures = {
        "since_step": since,
        "samples": len(samples_of(mine)),
        "losses": len(apart),
        "largest_relative": worst,
        "at_step": at,
        "other_metrics": {
            one.name: _largest(found)
            for one in others
            if (found := _losses_apart(mine, theirs, [one]))
        },
        "weights_relative": weights_apart(straight, other),
    }
    return _samples_apart(mine, theirs) or _beyond(apart, tolerance), figures


def _largest(apart: list[tuple[float, LogRow]]) -> float | None:
    """The largest difference; None where a run has a value that is no finite number."""
    far = max(each for each, _ in apart)
    return far if math.isfinite(far) else None


def _losses_of(metrics: Metrics) -> list[Metric]:
    return [one for one in metrics.all if one.better == "lower"] or [*metrics.all]


def _losses_apart(
    mine: list[LogRow], theirs: list[LogRow], losses: Sequence[Metric]
) -> list[tuple[float, LogRow]]:
    """Of each row that has some of them, how far the worst is apart."""
    names = {
        "step": [metric.name for metric in losses if metric.of == "step"],
        "eval": [metric.name for metric in losses if metric.of == "evaluation"],
    }
    pairs = zip(
        (row for row in mine if row["event"] in names),
        (row for row in theirs if row["event"] in names),
        strict=False,
    )
    found = []
    for one, two in pairs:
        known = [name for name in names[one["event"]] if name in one or name in two]
        if known:
            found.append((max(_relative(one, two, name) for name in known), one))
    return found


def _relative(one: LogRow, two: LogRow, name: str) -> float:
    a, b = float(one.get(name, "nan")), float(two.get(name, "nan"))
    far = abs(a - b) / abs(a) if a else abs(a - b)
    return far if far == far else float("inf")


def _samples_apart(mine: list[LogRow], theirs: list[LogRow]) -> str | None:
    def spans(rows: list[LogRow]) -> list[tuple[str, int, Any]]:
        return [(row["event"], row["step"], row.get("samples")) for row in rows]

    for one, two in zip(spans(mine), spans(theirs), strict=False):
        if one != two:
            return f"step {one[1]}: {one[0]} with samples {one[2]}, and {two[0]} with {two[2]}"
    if len(mine) != len(theirs):
        return f"{len(mine)} rows of metrics, and {len(theirs)}"
    return None


def _beyond(apart: list[tuple[float, LogRow]], tolerance: float) -> str | None:
    for far, row in apart:
        if far > tolerance:
            samples = f", samples {row['samples']}" if "samples" in row else ""
            return f"step {row['step']}{samples}: losses are {far:.1e} apart, relative"
    return None


def first_row(mine: list[LogRow], theirs: list[LogRow]) -> str | None:
    """The first row of metrics that differs, with its step, samples and first value."""
    for one, two in zip(mine, theirs, strict=False):
        if one != two:
            name = next(n for n in [*one, *two] if one.get(n) != two.get(n))
            samples = f", samples {one['samples']}" if "samples" in one else ""
            return (
                f"step {one['step']}{samples}: {name} of the {one['event']} is "
                f"{one.get(name)!r} and {two.get(name)!r}"
            )
    if len(mine) != len(theirs):
        return f"{len(mine)} rows of metrics, and {len(theirs)}"
    return None


def first_file(one: Artifact, two: Artifact) -> str | None:
    """The first file that differs, and of a file of tensors the first tensor."""
    mine = {entry.path: entry.sha256 for entry in one.manifest.files}
    theirs = {entry.path: entry.sha256 for entry in two.manifest.files}
    for name in sorted({*mine, *theirs}):
        if mine.get(name) == theirs.get(name):
            continue
        if name not in mine or name not in theirs:
            return f"{name} is in one checkpoint alone"
        if name.endswith(".safetensors"):
            return _first_tensor(one.path / name, two.path / name) or f"the header of {name}"
        return f"the file {name}"
    return None


def _first_tensor(one: Path, two: Path) -> str | None:
    mine, theirs = _mapped(one), _mapped(two)
    for name in mine.file.places:
        if name not in theirs.file.places:
            return f"the tensor {name} is in one {one.name} alone"
        a, b = mine[name], theirs[name]
        # By bytes: a NaN is itself, and -0 is not 0.
        if a.shape != b.shape or a.tobytes() != b.tobytes():
            differ = int((a != b).sum()) if a.shape == b.shape else a.size
            return f"the tensor {name} of {one.name}: {differ:,} of {a.size:,} numbers"
    return None


def _mapped(path: Path) -> MappedTensors:
    return TensorFile.open(path).arrays(path, "r")


def weights_apart(one: Artifact, two: Artifact) -> float:
    """L2 norm of the difference of all weights over the norm of the first's."""
    difference, norm = 0.0, 0.0
    for a, b in _weights(one, two):
        difference += float(np.square(a - b, dtype=np.float64).sum())
        norm += float(np.square(a, dtype=np.float64).sum())
    return float(np.sqrt(difference / norm)) if norm else 0.0


def _weights(one: Artifact, two: Artifact) -> Iterator[tuple[Any, Any]]:
    for name in one.files("model"):
        if name.endswith(".safetensors"):
            mine, theirs = _mapped(one.path / name), _mapped(two.path / name)
            for tensor in mine.file.places:
                yield mine[tensor], theirs[tensor]
