"""Runs stages one after another, each in processes of its own, and never longer than it may."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from gpu_stages.stage_table import DEADLINES, ENDS, Stage
from gpu_stages.summary import write_summary

#: All that a run writes.
OUTPUTS = (
    "log.txt", "results.jsonl", "summary.md", "env.json", "bench.json", "kernels.csv",
    "trace.json.gz",
)  # fmt: skip
LOG, RESULTS = OUTPUTS[:2]

#: Seconds kept for the summary.
_RESERVE_S = 2.0

#: Lines of a dead process that its row keeps.
_LAST_LINES = 12


class Stopped(BaseException):
    """A signal asked the run to end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@dataclass
class Ended:
    """How a process ended."""

    why: str | None
    """None: well."""
    lines: str


class Run:
    """One run of the command.

    Args:
        out: an existing folder.
        deadline: seconds for everything, from now on.
    """

    def __init__(self, out: Path, stages: Sequence[Stage], deadline: float):
        self.out = out
        self.stages = stages
        self.deadline = deadline
        self.began = time.monotonic()
        self.ends: dict[str, dict[str, Any]] = {}
        """By stage, how it ended."""

    def run(self) -> int:
        """Run the stages, and write the summary in any case.

        Returns:
            The exit code.
        """
        code = 0
        try:
            with _signals_raise(), tempfile.TemporaryDirectory(prefix="bc2-gpu-") as scratch:
                for stage in self.stages:
                    self._stage(stage, Path(scratch))
        except Stopped as stopped:
            code = 128 + stopped.number
            for stage in self.stages:
                if stage.name not in self.ends:
                    self._end(stage, "not run", "the run was stopped", 0.0)
        good = write_summary(self.out, self.stages, self.rows(), self._left(), stopped=code != 0)
        print((self.out / "summary.md").read_text(encoding="utf-8"))
        return code or (0 if good else 1)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of results.jsonl; what a killed process left half written is left out."""
        found = []
        path = self.out / RESULTS
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def _left(self) -> float:
        return self.deadline - (time.monotonic() - self.began)

    def _limit(self, stage: Stage) -> float:
        """Seconds that a stage may take: a run that has more time gives each more of it."""
        return stage.limit_s * max(1.0, self.deadline / DEADLINES["all"])

    def _stage(self, stage: Stage, scratch: Path) -> None:
        left = self._left() - _RESERVE_S
        if left < stage.needs_s:
            why = f"{max(0.0, left):.0f} s are left, and it takes about {stage.needs_s:g} s"
            self._end(stage, "not run", why, 0.0)
            return
        self._say(f"{stage.name}: {stage.what}")
        began = time.monotonic()
        try:
            failed = self._parts(stage, scratch, began + min(self._limit(stage), left))
        except Stopped:
            self._end(stage, "failed", "the run was stopped in it", time.monotonic() - began)
            raise
        why = "; ".join(failed) or None
        self._end(stage, "failed" if failed else "ended", why, time.monotonic() - began)

    def _parts(self, stage: Stage, scratch: Path, end: float) -> list[str]:
        """Run the processes of a stage until `end`, and say which did not end well, and why."""
        failed: list[str] = []
        for after, part in zip(reversed(range(len(stage.parts))), stage.parts, strict=True):
            of = f" ({part})" if len(stage.parts) > 1 else ""
            spare = end - time.monotonic()
            if stage.independent:
                # One that hangs leaves time for those after it.
                spare -= after * stage.needs_s / len(stage.parts)
            if failed and (not stage.independent or spare <= 0):
                why = "an earlier process failed" if spare > 0 else "no time was left"
                self._check(stage, f"the process ends well{of}", "not run", why=why)
                continue
            ended = self._process(stage, part, scratch, spare)
            if ended.why is not None:
                failed.append(f"{ended.why}{of}")
                why = "a crash, a kill or a hang is no result"
                more = {"saw": ended.why, "last_lines": ended.lines}
                self._check(stage, f"the process ends well{of}", "failed", why=why, **more)
        return failed

    def _process(self, stage: Stage, part: str, scratch: Path, limit: float) -> Ended:
        """Run one process of a stage; it and all that it started are gone afterwards."""
        child = Path(__file__).with_name("child.py")
        paths = map(str, (self.out / RESULTS, self.out, scratch))
        command = [sys.executable, "-P", str(child), stage.runs, stage.name, part, *paths]
        with (self.out / LOG).open("ab") as log:
            log.write(f"\n==== {stage.name} {part}\n".encode())
            log.flush()
            begin = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", ENDS: str(time.monotonic() + limit)},
                start_new_session=True,
            )
            family: dict[int, psutil.Process] = {}
            try:
                code = _wait(process, max(0.0, limit), family)
                if code is None:
                    # It says in the log where it stands.
                    process.send_signal(signal.SIGUSR1)
                    time.sleep(0.5)
            finally:
                _kill(process, family)
        self._end_line()
        return Ended(_reason(code, limit), self._last_lines(begin))

    def _last_lines(self, begin: int) -> str:
        with (self.out / LOG).open("rb") as log:
            log.seek(begin)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(line[:300] for line in lines[-_LAST_LINES:])

    def _end_line(self) -> None:
        """See that the next row begins on a line of its own."""
        path = self.out / RESULTS
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
            with path.open("ab") as stream:
                stream.write(b"\n")

    def _check(self, stage: Stage, check: str, status: str, **more: str) -> None:
        self._write({"stage": stage.name, "check": check, "status": status, **more})

    def _end(self, stage: Stage, status: str, why: str | None, seconds: float) -> None:
        row = {"stage": stage.name, "end": status, "why": why, "seconds": round(seconds, 1)}
        self.ends[stage.name] = row
        self._write(row)
        self._say(f"{stage.name}: {status} after {seconds:.1f} s" + (f": {why}" if why else ""))

    def _write(self, row: dict[str, Any]) -> None:
        with (self.out / RESULTS).open("ab", buffering=0) as stream:
            stream.write(json.dumps(row).encode() + b"\n")

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", file=sys.stderr, flush=True)


def _wait(
    process: subprocess.Popen[bytes], limit: float, family: dict[int, psutil.Process]
) -> int | None:
    """The exit code; None if it did not end in time. Notes who is below it in `family`."""
    end = time.monotonic() + limit
    while True:
        try:
            return process.wait(min(0.5, max(0.01, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            _note(process.pid, family)
            if time.monotonic() >= end:
                return None


def _note(pid: int, family: dict[int, psutil.Process]) -> None:
    """Remember the descendants: one that changed its session is in no process group of ours."""
    try:
        for below in psutil.Process(pid).children(recursive=True):
            family[below.pid] = below
    except psutil.NoSuchProcess:
        return


def _kill(process: subprocess.Popen[bytes], family: dict[int, psutil.Process]) -> None:
    """Kill a process and its descendants; psutil kills no process that only has the same id."""
    if process.poll() is None:
        _note(process.pid, family)
        process.kill()
    for below in family.values():
        try:
            below.kill()
        except psutil.NoSuchProcess:
            continue
    # Of a process that died by itself: those that it left in its group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(code: int | None, limit: float) -> str | None:
    if code == 0:
        return None
    if code is None:
        return f"killed: it had not ended after {limit:.0f} s"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM become `Stopped`, so that processes are ended and the summary written."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
