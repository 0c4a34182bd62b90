"""Run the stages of the funnel over all parts of the working set, and resume a killed run.

A segment is one pass over the text. It applies the verdicts of a stage that has settled, then the
stages that need no verdicts, and makes the keys of the next stage that settles. Finished parts of a
segment and the verdicts of settled stages are kept until the corpus is made, so a killed run
continues from them. The text before a segment is deleted when the segment has finished.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bc2.console import Progress
from bc2.data.prep.engine import PrepEngine
from bc2.data.prep.group_by import Groups, Int64
from bc2.data.prep.part_files import SUFFIX
from bc2.data.prep.segment import PartFacts, Segment, SegmentTask, run_part
from bc2.data.prep.stages.base import Aftermath, PrepStage, WorkingSet
from bc2.files import make_directory, replace_durably

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Opens a progress bar by title, total and unit.
Bars = Callable[[str, float | None, str], AbstractContextManager[Progress]]


class Parts(NamedTuple):
    """A working set: a folder and the names of the parts in it."""

    folder: Path
    names: list[str]

    def path(self, name: str) -> Path:
        """The file of a part."""
        return self.folder / f"{name}{SUFFIX}"


@dataclass
class StageResults:
    """What all stages did."""

    parts: Parts
    """The parts after the last segment."""
    facts: list[PartFacts]
    """What each segment did to each part, in the order of segments and parts."""
    settled: dict[str, dict[str, Any]]
    """Stage -> what `PrepStage.settle` returned."""
    seconds: dict[str, float]
    """Seconds of preparing and settling, by stage."""


def run_stages(
    stages: list[PrepStage],
    parts: Parts,
    work: Path,
    engine: PrepEngine,
    bars: Bars,
    keep_dropped: Path | None = None,
) -> StageResults:
    """Apply all stages to the working set.

    Args:
        parts: the parts as they were read; deleted after the first segment.
        work: a directory for this input and these settings alone.
        keep_dropped: folder to which dropped documents are written, by stage.
    """
    facts: list[PartFacts] = []
    settled: dict[str, dict[str, Any]] = {}
    closing: PrepStage | None = None
    seconds: dict[str, float] = {}
    for stage in stages:
        seconds[stage.name] = _prepare(stage, work / f"prepared-{stage.name}")
    for number, segment in enumerate(segments(stages) if parts.names else []):
        folder = work / f"segment-{number}"
        make_directory(folder / "keys")
        verdicts = None
        if closing is not None:
            verdicts = _verdicts(closing, work)
            before = parts.folder / "keys"
            settled[closing.name] = _settle(closing, parts, before, verdicts, engine, bars)
            seconds[closing.name] += _seconds(verdicts)
        tasks = [
            SegmentTask(segment, parts.path(name), folder, name, verdicts, keep_dropped)
            for name in parts.names
        ]
        facts += _run(segment, tasks, engine, bars)
        # All parts and facts of this segment are on disk, so those before it are not needed.
        for name in parts.names:
            parts.path(name).unlink(missing_ok=True)
        parts = Parts(folder, parts.names)
        closing = segment.closing
    for number, stage in enumerate(stages):
        if stage.name in settled:
            began = time.perf_counter()
            after = _aftermath(stage, stages[number + 1 :], parts, work)
            settled[stage.name] = settled[stage.name] | stage.review(after)
            seconds[stage.name] += time.perf_counter() - began
    return StageResults(parts, facts, settled, seconds)


def _prepare(stage: PrepStage, folder: Path) -> float:
    """Let a stage make what its workers need; the seconds it took, 0 if it makes nothing."""
    began = time.perf_counter()
    stage.prepare(folder)
    return time.perf_counter() - began if folder.exists() else 0.0


def _aftermath(stage: PrepStage, later: Iterable[PrepStage], parts: Parts, work: Path) -> Aftermath:
    """What `PrepStage.review` gets."""
    cutting = [one for one in later if one.cuts()]
    verdicts, *cut = [
        [_verdicts(one, work) / f"{name}.parquet" for name in parts.names]
        for one in (stage, *cutting)
    ]
    return Aftermath(verdicts, [parts.path(name) for name in parts.names], [*chain(*cut)])


def _verdicts(stage: PrepStage, work: Path) -> Path:
    """The folder of a stage's verdicts."""
    return work / f"settled-{stage.name}"


def segments(stages: Iterable[PrepStage]) -> list[Segment]:
    """Divide the stages into segments: a new segment begins at each stage that settles."""
    found: list[list[PrepStage]] = [[]]
    for stage in stages:
        if stage.needs_all:
            found.append([])
        found[-1].append(stage)
    closings = [group[0] for group in found[1:]] + [None]
    return [Segment(tuple(group), last) for group, last in zip(found, closings, strict=True)]


def _run(
    segment: Segment, tasks: list[SegmentTask], engine: PrepEngine, bars: Bars
) -> list[PartFacts]:
    known = {task.name: task.known() for task in tasks}
    todo = [task for task in tasks if known[task.name] is None]
    with bars(segment.title, len(tasks), "parts") as bar:
        bar(len(tasks) - len(todo))
        for task, made in zip(todo, engine.map(run_part, todo), strict=True):
            known[task.name] = made
            bar(1, f"{made['documents']:,} documents")
    return [found for found in known.values() if found is not None]


def _settle(
    stage: PrepStage, parts: Parts, keys: Path, verdicts: Path, engine: PrepEngine, bars: Bars
) -> dict[str, Any]:
    """Let a stage settle, unless an earlier run did; returns the facts of the stage."""
    done = verdicts / "facts.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_bytes())
        return found
    shutil.rmtree(verdicts, ignore_errors=True)
    make_directory(verdicts / "scratch")
    began = time.perf_counter()
    with bars(f"settling {stage.name}", None, ""):
        facts = stage.settle(_WorkingSet(parts, keys, verdicts, engine))
    shutil.rmtree(verdicts / "scratch")
    took = time.perf_counter() - began
    replace_durably(verdicts / "seconds.json", json.dumps(took).encode())
    replace_durably(done, json.dumps(facts).encode())
    return facts


def _seconds(verdicts: Path) -> float:
    """How long a stage took to settle; 0 where an older version did not record it."""
    path = verdicts / "seconds.json"
    return float(json.loads(path.read_bytes())) if path.exists() else 0.0


class _WorkingSet(WorkingSet):
    """The working set that `PrepStage.settle` gets."""

    def __init__(self, parts: Parts, keys: Path, verdicts: Path, engine: PrepEngine):
        self.parts = parts.names
        self.folder = verdicts / "scratch"
        self._parts, self._keys, self._verdicts, self._engine = parts, keys, verdicts, engine

    def part(self, name: str) -> Path:
        return self._parts.path(name)

    def keys(self, name: str) -> Path:
        return self._keys / f"{name}.parquet"

    def verdict(self, name: str) -> Path:
        return self._verdicts / f"{name}.parquet"

    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        return self._engine.group(paths, columns, without)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return self._engine.map(function, items)
