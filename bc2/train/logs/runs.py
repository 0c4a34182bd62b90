"""Runs seen from outside: their folders, whether a process trains them, and how each ended.

Imports no torch, so that watching a run starts at once. Nothing here can disturb training:
whether a process trains is asked of the kernel, without taking a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bc2.console import note
from bc2.errors import DataError, RefError, nearest
from bc2.files import NO_LOCKS, make_directory, no_lock, replace_durably, warn_once
from bc2.registry import Registry, refs
from bc2.train.logs.log_rows import METRICS, TIMING, LogRow, parse_row, read_rows
from bc2.train.metric import Metrics
from bc2.train.pretrain.pretrain_metrics import PRETRAIN_METRICS
from bc2.user_paths import expand_if_known

RUN = "run.json"
RECIPE = "recipe.json"
#: Empty; locked for as long as a process trains in the folder.
MARK = "running"

#: What to do about one of its files that is broken.
_ANEW = "start the run again: it is written anew"

#: A folder with one of these files is a run's; the mark is made first.
_FILES = (TIMING, RUN, RECIPE, MARK)

#: Linux's struct flock: type, whence, start, length (0: to the end), process.
_FLOCK = "hhqqi"
_WHOLE_FILE = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@contextmanager
def mark_running(folder: Path) -> Iterator[None]:
    """Mark a run folder as being trained in; the mark ends with the process.

    An open-file-description lock and not flock, because others can query it without
    taking it: a probe by flock would hold for a moment what a starting run needs.

    Raises:
        CallFailed: the file system has no locks.
    """
    make_directory(folder)
    with (folder / MARK).open("wb") as stream:
        try:
            fcntl.fcntl(stream, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise no_lock(error, "fcntl", folder / MARK) from error
            raise
        yield


def is_running(folder: Path) -> bool:
    """Whether a process trains in this run folder now.

    Where the file system has no locks this is not known: it is said once, and taken for no.
    """
    try:
        stream = (folder / MARK).open("rb")
    except FileNotFoundError:
        return False
    with stream:
        try:
            answer = fcntl.fcntl(stream, fcntl.F_OFD_GETLK, _WHOLE_FILE)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warn_once(
                "marks",
                f"the file system of {folder} has no locks (fcntl: "
                f"{str(error.strerror).lower()}): whether a run is being trained is not known",
            )
            return False
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


#: What the facts of a run were called in ``run.json`` by bc2 0.1.
_EARLIER_NAMES = {"tokens_per_step": "batch_tokens", "tokens_per_sample": "sequence_length"}


@dataclass(frozen=True)
class RunFacts:
    """What ``run.json`` says of a run; written when it starts."""

    name: str
    key: str
    """The stage key of its checkpoints, 64 hex digits."""
    steps: int
    """Optimizer steps of the whole run."""
    batch_tokens: int
    sequence_length: int
    clip_norm: float
    """What the gradient's norm is clipped to."""
    parents: tuple[str, ...]
    """Digests of what it is trained on: token shards and tokenizer."""
    metrics: Metrics = PRETRAIN_METRICS
    """What it measures. Before there were other algorithms the file did not say."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunFacts:
        """What `write` wrote, or bc2 0.1.

        Raises:
            ValueError: something is missing, too much, or no list of metrics.
        """
        named = {_EARLIER_NAMES.get(name, name): value for name, value in values.items()}
        if "metrics" in named:
            named["metrics"] = Metrics.from_json(named["metrics"])
        try:
            return cls(**{**named, "parents": tuple(named["parents"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the facts of a run: {error}") from error

    def write(self, folder: Path) -> None:
        content = {**vars(self), "metrics": self.metrics.as_json()}
        replace_durably(folder / RUN, json.dumps(content, indent=2).encode())


@dataclass
class Attempt:
    """One process at a run, from its start or resume to its end."""

    event: Literal["start", "resume"]
    step: int
    """Optimizer steps behind it when it began."""
    began: float
    """By the wall clock, in seconds since 1970."""
    facts: dict[str, Any]
    """What else its first row says: device, threads, versions."""
    last_step: int
    seconds: float = 0.0
    """From its start to its last row."""
    end: LogRow | None = None
    """The row that says how it ended; None while it runs, and if it was killed."""

    @classmethod
    def begin(cls, row: LogRow) -> Attempt:
        named = ("event", "step", "time", "elapsed")
        facts = {name: value for name, value in row.items() if name not in named}
        return cls(row["event"], row["step"], row["time"], facts, row["step"])

    def add(self, row: LogRow) -> None:
        """A later row of ``timing.jsonl``, while no other attempt has begun."""
        # The wall clock only where there is no other: it may jump.
        seconds = row["elapsed"] if "elapsed" in row else row["time"] - self.began
        self.seconds = max(self.seconds, seconds)
        if row["event"] == "step":
            self.last_step = row["step"]
        if row["event"] in ("stop", "fail", "finish"):
            self.end = row


def add_to_attempts(attempts: list[Attempt], row: LogRow) -> None:
    """Add a row of ``timing.jsonl`` to the attempts so far."""
    if row["event"] in ("start", "resume"):
        attempts.append(Attempt.begin(row))
    elif attempts:
        attempts[-1].add(row)


def latest_attempts(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """The attempts of the training that runs now or ended last.

    Those before it belong to trainings that finished, and that ``--fresh`` began anew.
    """
    ends = [number for number, one in enumerate(attempts[:-1], 1) if _finished(one)]
    return attempts[ends[-1] :] if ends else attempts


def _finished(attempt: Attempt) -> bool:
    return attempt.end is not None and attempt.end["event"] == "finish"


@dataclass(frozen=True)
class State:
    """The state of a run."""

    name: Literal["running", "finished", "stopped", "failed", "died"]
    detail: str = ""
    """The signal it was stopped by, or why it failed."""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


def state_at_end(end: LogRow | None) -> State:
    """The state of a run after an attempt.

    Args:
        end: the row of how it ended; None: it has none, so the process was killed.
    """
    if end is None:
        return State("died", "killed, or crashed")
    if end["event"] == "finish":
        return State("finished")
    if end["event"] == "stop":
        return State("stopped", signal.Signals(end["signal"]).name)
    return State("failed", str(end.get("what", "")))


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run below ``.bc2/runs``, with its logs."""

    path: Path

    @classmethod
    def of(cls, registry: Registry, name: str, key: str) -> RunFolder:
        """The folder of the run of a name whose checkpoints have a stage key."""
        return cls(registry.runs / f"{name}-{key[:12]}")

    @property
    def facts(self) -> RunFacts | None:
        """What ``run.json`` says, or None if the run has none yet.

        Raises:
            DataError: it is not what a run writes.
        """
        values = self._json(RUN)
        try:
            return RunFacts.from_json(values) if values else None
        except ValueError as error:
            raise DataError(str(error), where=str(self.path / RUN), todo=_ANEW) from error

    @property
    def measures(self) -> Metrics:
        """What the run measures, as it declared it; pretraining's while it has no ``run.json``.

        Raises:
            DataError: ``run.json`` is not what a run writes.
        """
        facts = self.facts
        return facts.metrics if facts else PRETRAIN_METRICS

    @property
    def name(self) -> str:
        return self.path.name.rpartition("-")[0] or self.path.name

    @property
    def key(self) -> str:
        """The stage key of its checkpoints, or its beginning, which names the folder."""
        facts = self.facts
        return facts.key if facts else self.path.name.rpartition("-")[2]

    def recipe(self) -> dict[str, Any]:
        """The recipe with every default filled in; empty before the run wrote it."""
        return self._json(RECIPE)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.exists():
            return {}
        found = parse_row(path.read_bytes())
        if found is None:
            raise DataError("not a JSON object", where=str(path), todo=_ANEW)
        return found

    def metrics(self) -> Iterator[LogRow]:
        """The rows of ``metrics.jsonl``: one history, without what a resume went back over."""
        return read_rows(self.path / METRICS)

    def timing(self) -> Iterator[LogRow]:
        """The rows of ``timing.jsonl``: every attempt."""
        return read_rows(self.path / TIMING)

    def attempts(self) -> list[Attempt]:
        """Starts and resumes in their order, with how each ended."""
        attempts: list[Attempt] = []
        for row in self.timing():
            add_to_attempts(attempts, row)
        return attempts

    def running(self) -> bool:
        return is_running(self.path)

    def last_written(self) -> float:
        """When it last logged something, by the file system's clock."""
        for name in _FILES:
            if (self.path / name).exists():
                return (self.path / name).stat().st_mtime
        return 0.0


def list_runs(registry: Registry) -> list[RunFolder]:
    """Every run folder of a home: those being trained in first, then the last written."""
    if not registry.runs.is_dir():
        return []
    runs = [RunFolder(path) for path in registry.runs.iterdir() if _is_run(path)]
    return sorted(runs, key=lambda run: (run.running(), run.last_written()), reverse=True)


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in _FILES)


def find_run(registry: Registry, ref: str | None = None) -> RunFolder:
    """The run that a person means.

    Args:
        ref: a run folder's path; a run's name, or the beginning of ``NAME-KEY``; or a
            checkpoint (``checkpoint/tiny``, a digest). None: the newest run, which is then
            said on stderr. Newest: being trained now, else the last to log something.

    Raises:
        RefError: no run answers to it, or several do.
    """
    if ref is not None and _is_run(expand_if_known(ref)):
        return RunFolder(expand_if_known(ref).absolute())
    runs = list_runs(registry)
    if not runs and (ref is None or refs.parse(ref) is None):
        raise _no_run(registry, ref, runs)
    if ref is None:
        note(f"taking the newest run, {runs[0].path.name}")
        return runs[0]
    named = [run for run in runs if run.name == ref]
    if named:
        if len(named) > 1:
            note(f"{len(named)} runs are called {ref}: taking the newest, {named[0].path.name}")
        return named[0]
    begun = [run for run in runs if run.path.name.startswith(ref) and len(ref) > len(run.name)]
    return _only(begun, ref) if begun else _of_checkpoint(registry, ref, runs)


def _only(found: Sequence[RunFolder], ref: str) -> RunFolder:
    if len(found) > 1:
        choices = ", ".join(run.path.name for run in found[:8])
        raise RefError(f"{ref!r} is ambiguous", todo=f"say which: {choices}")
    return found[0]


def _of_checkpoint(registry: Registry, ref: str, runs: Sequence[RunFolder]) -> RunFolder:
    parsed = refs.parse(ref)
    try:
        artifact = registry.resolve(ref, "checkpoint")
    except RefError:
        if parsed is None or parsed.bare:
            raise _no_run(registry, ref, runs) from None
        raise
    mine = [run for run in runs if artifact.key.startswith(run.key)]
    # The same settings under two names are one key and two folders.
    for run in sorted(mine, key=lambda run: run.name != artifact.name):
        return run
    raise RefError(
        f"the run folder of {artifact.title} is not here",
        where=str(registry.runs),
        todo=f"what the run computed is in {artifact.path / METRICS}",
    )


def _no_run(registry: Registry, ref: str | None, runs: Iterable[RunFolder]) -> RefError:
    known = [name for run in runs for name in (run.name, run.path.name)]
    what = f"no run answers to {ref!r}" if ref is not None else "there is no run"
    guess = nearest(ref or "", known)
    if guess:
        todo = f"did you mean {guess!r}?"
    elif known:
        todo = f"the runs: {', '.join(dict.fromkeys(known[1::2][:8]))}"
    else:
        todo = "make one with: bc2 pretrain RECIPE"
    return RefError(what, where=str(registry.runs), todo=todo)
