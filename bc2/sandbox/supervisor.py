"""One program's run: starts its two processes, watches time and output, gives the verdict.

The candidate's process is forked before the tests are read here, so that it holds no copy.
"""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from bc2.sandbox import kernel
from bc2.sandbox.candidate import run_candidate
from bc2.sandbox.confine import Place
from bc2.sandbox.judge import judge
from bc2.sandbox.limits import Limits
from bc2.sandbox.spawn import Child, spawn

#: How long to wait for word of a process that is known to have ended, seconds.
_GRACE = 2.0

#: How often the size of a directory is looked at that has no limit of its own, seconds.
_LOOK = 0.02


@dataclass
class Watched:
    """What has come out of the pipes of one run so far."""

    limits: Limits
    output: bytearray = field(default_factory=bytearray)
    report: bytearray = field(default_factory=bytearray)
    ended: dict[str, str] = field(default_factory=dict)
    """How candidate and tests ended: what their status pipes told."""

    def read(self, fd: int, *, is_output: bool) -> bool:
        """Take what a pipe has; False if it has ended."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not is_output:
            self.report += data
        elif (room := self.limits.output_bytes - len(self.output)) > 0:
            self.output += data[:room]
        return bool(data)


class Abandoned(Exception):
    """No one waits for the answer any more."""


def supervise(job: socket.socket, place: Place, limits: Limits, proc: int, temporary: str) -> None:
    """Run what comes over `job` and answer there: a JSON object, either way.

    Args:
        job: gives the candidate's and the tests' source as one JSON object, then no more.
        temporary: where to make the program's own directory if the mode has none.
    """
    kernel.adopt_orphans()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    folder = None
    watchers: list[int] = []
    try:
        if place.mode == "landlock":
            folder = tempfile.mkdtemp(prefix="run-", dir=temporary)
            if place.may_change_user:
                os.chown(folder, place.user, place.user)
            place = replace(place, folder=folder)
        answer: dict[str, Any] | None = _run(job, place, limits, proc, watchers)
    except Abandoned:
        answer = None
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    finally:
        _end_all(watchers)
        if folder is not None:
            shutil.rmtree(folder)
    if answer is not None:
        job.sendall(json.dumps(answer).encode())


def _run(
    job: socket.socket, place: Place, limits: Limits, proc: int, watchers: list[int]
) -> dict[str, Any]:
    """Start both processes, give them their sources, watch.

    Args:
        watchers: takes the pids of what was started, if this fails too.
    """
    theirs, ours = socket.socketpair()
    output, written = os.pipe()
    source, source_in = os.pipe()
    tests, tests_in = os.pipe()
    report, reported = os.pipe()

    def candidate() -> None:
        _standard_files(written)
        run_candidate(_read_all(source).decode(errors="surrogatepass"), theirs)

    def judging() -> None:
        _standard_files(None)
        wanted = json.loads(_read_all(tests))
        told = judge(wanted["tests"], wanted["redefines"], ours)
        os.write(reported, json.dumps(told).encode())

    children = {}
    for name, keep, work in (
        ("candidate", [theirs.fileno(), written, source], candidate),
        ("tests", [ours.fileno(), tests, reported], judging),
    ):
        children[name] = spawn(place, limits, proc, watchers, keep, work)
    theirs.close()
    ours.close()
    for fd in (written, source, tests, reported):
        os.close(fd)
    begin = time.monotonic()
    request = json.loads(_read_all(job.fileno()))
    _give(source_in, request["candidate"])
    _give(tests_in, json.dumps({k: request[k] for k in ("tests", "redefines")}))
    watched = Watched(limits)
    outcome = _watch(watched, job, children, (output, report), place, begin)
    if "error" not in outcome:
        outcome["seconds"] = time.monotonic() - begin
        outcome["output"] = watched.output.decode(errors="replace")
    return outcome


def _read_all(fd: int) -> bytes:
    data = bytearray()
    while some := os.read(fd, 1 << 16):
        data += some
    return bytes(data)


def _give(fd: int, text: str) -> None:
    data = memoryview(text.encode(errors="surrogatepass"))
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        pass  # it could not start, as its status tells
    finally:
        os.close(fd)


def _standard_files(output: int | None) -> None:
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    for fd in (1, 2):
        os.dup2(nothing if output is None else output, fd)
    # Unbuffered: a process that is killed flushes nothing.
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.FileIO(fd, "w", closefd=False),
            encoding="utf-8", errors="replace", write_through=True,
        )
        for fd in (1, 2)
    )  # fmt: skip


def _watch(
    watched: Watched,
    job: socket.socket,
    children: dict[str, Child],
    pipes: tuple[int, int],
    place: Place,
    begin: float,
) -> dict[str, Any]:
    """Read all pipes until there is a verdict."""
    output, report = pipes
    statuses = {child.status: name for name, child in children.items()}
    deadline = begin + watched.limits.wall_seconds
    poll = select.poll()
    poll.register(job, 0)  # tells when it is hung up
    for fd in (output, report, *statuses):
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        wait = min(left, _LOOK) if place.mode == "landlock" else left
        for fd, _ in poll.poll(max(0, wait) * 1000):
            if fd == job.fileno():
                raise Abandoned
            if fd in statuses:
                watched.ended[statuses[fd]] = os.read(fd, 1 << 16).decode(errors="replace")
                deadline = min(deadline, time.monotonic() + _GRACE)
                poll.unregister(fd)
            elif not watched.read(fd, is_output=fd == output):
                poll.unregister(fd)
        watched.read(report, is_output=False)  # it was written before the process ended
        verdict = _verdict(watched, place, time.monotonic() >= deadline)
        if verdict is not None:
            watched.read(output, is_output=True)
            return verdict


def _verdict(watched: Watched, place: Place, out_of_time: bool) -> dict[str, Any] | None:
    for name, told in watched.ended.items():
        if not told.startswith("W"):
            return {"error": f"{name}: {told[1:] or 'its process was lost'}"}
    if place.mode == "landlock" and _size(place.folder) > watched.limits.file_bytes:
        return _killed(f"its files came to more than {watched.limits.file_bytes} bytes")
    report = _whole(watched.report)
    if report is not None and report["verdict"] != "gone":
        return report
    if report is not None and "candidate" in watched.ended:
        return _how_it_ended(watched.ended["candidate"], "the candidate")
    if report is None and "tests" in watched.ended:
        return _how_it_ended(watched.ended["tests"], "the tests' process")
    if not out_of_time:
        return None
    if report is not None:
        return {"verdict": "failed", "detail": "the candidate hung up on the tests"}
    return {"verdict": "timed_out", "detail": f"no end after {watched.limits.wall_seconds:g} s"}


def _whole(data: bytearray) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(data)
    except ValueError:
        return None
    return found


def _killed(why: str) -> dict[str, Any]:
    return {"verdict": "killed", "detail": why}


def _how_it_ended(told: str, who: str) -> dict[str, Any]:
    status = int(told[1:])
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        return {"verdict": "failed", "detail": f"{who} left with exit code {code}"}
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return {"verdict": "timed_out", "detail": f"{who} used up its processor time"}
    return _killed(f"{who} was ended by {signal.Signals(number).name}")


def _size(folder: str) -> int:
    """Bytes of all files; an entry counts a page, as an empty one takes room too."""
    size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # the program has removed it meanwhile
                size += 4096 + entry.stat(follow_symlinks=False).st_size
    return size


def _end_all(watchers: list[int]) -> None:
    """Kill the processes of this run and wait until none is left.

    What is below a watcher dies with it, and then is this process's to wait for.
    """
    for pid in watchers:
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
