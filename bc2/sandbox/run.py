"""Programs run where they can harm nothing, with a verdict they cannot fake."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

from bc2.errors import RunFailed
from bc2.sandbox.limits import Limits
from bc2.sandbox.readable import module_folders, readable_paths
from bc2.sandbox.syscalls import MACHINES, this_machine

Verdict = Literal["passed", "failed", "timed_out", "killed"]
Mode = Literal["namespaces", "landlock"]

_MODES: tuple[Mode, ...] = ("namespaces", "landlock")

#: Beyond a program's own time, how long its answer may take before the sandbox is broken, seconds.
_PATIENCE = 60.0

#: All that programs see of an environment. Libraries of numpy would start a thread a core.
_ENVIRONMENT = {
    "HOME": "/", "LANG": "C.UTF-8", "PATH": "", "PYTHONHASHSEED": "0", "TMPDIR": ".",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip

_START = (
    "import sys; sys.path.insert(0, sys.argv[2]); from bc2.sandbox.launcher import main; main()"
)

_CHECK_CANDIDATE = """
import ctypes, os, socket

def broken_out(outside):
    def tries():
        yield "fork", os.fork
        yield "socket", socket.socket
        yield "exec", lambda: os.execv("/bin/true", ["true"])
        yield "kill", lambda: os.kill(1 if os.getpid() > 1 else 2, 0)
        yield "read", lambda: open(outside).read()
        yield "write", lambda: open(outside, "a")
        yield "list", lambda: os.listdir(os.path.dirname(outside))
    found = []
    for name, attack in tries():
        try:
            attack()
        except (OSError, ImportError):
            continue
        found.append(name)
    return found
"""


class Program(NamedTuple):
    """What is run."""

    candidate: str
    """Source of the code that is judged."""

    tests: str
    """Source of the tests; what the candidate defines at its top they use by its name."""

    redefines: Collection[str] = ()
    """Builtins (``sum``) of which the tests mean the candidate's own. By default a candidate
    cannot take the place of a builtin: ``abs`` in a test is Python's."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    verdict: Verdict
    detail: str
    """For people: the last line of the error, at most 500 characters; empty if it passed."""

    seconds: float
    """From start to verdict."""

    output: str
    """What the candidate printed, as much as its limit allows."""

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


class _Jobs:
    """The programs that run, by the sockets that wait for their answers."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sockets: set[socket.socket] = set()
        self._ended = False

    def add(self, job: socket.socket) -> None:
        with self._lock:
            if self._ended:
                raise RunFailed("the sandbox is closed")
            self._sockets.add(job)

    def discard(self, job: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(job)

    def end(self) -> None:
        """Have them ended, and let no other begin: a supervisor that is hung up on ends all."""
        with self._lock:
            self._ended = True
            for job in self._sockets:
                with suppress(OSError):
                    job.shutdown(socket.SHUT_RDWR)


class Sandbox:
    """Runs programs; made by `Sandbox.open`, closed after use.

    A candidate runs in one process, its tests in another, both locked in. The tests pass
    if they come to their end without an exception, in a process the candidate cannot reach.
    """

    def __init__(self, mode: Mode):
        """As `open`, but without trying the sandbox out."""
        self.mode: Mode = mode
        self._lock = Lock()
        self._jobs = _Jobs()
        self._temporary = tempfile.TemporaryDirectory(prefix="bc2-sandbox-")
        if os.geteuid() == 0:  # its folders belong to other users
            os.chmod(self._temporary.name, 0o711)
        settings = {
            "mode": mode,
            "readable": readable_paths(),
            "module_folders": module_folders(),
            "temporary": self._temporary.name,
        }
        self._control, theirs = socket.socketpair()
        home = str(Path(__file__).parents[2])
        command = [sys.executable, "-s", "-S", "-B", "-P", "-c", _START, json.dumps(settings), home]
        self._process = subprocess.Popen(
            command, stdin=theirs.fileno(), env=_ENVIRONMENT, cwd="/", start_new_session=True
        )
        theirs.close()
        problem = self._problem()
        if problem:
            self.close()
            raise RunFailed(f"no sandbox with {mode}: {problem}")

    def _problem(self) -> str | None:
        """What keeps the launcher from its work, once it has tried."""
        self._control.settimeout(_PATIENCE)
        try:
            answer = self._control.recv(1 << 12)
        except TimeoutError:
            self._process.kill()
            return f"its launcher gave no answer for {_PATIENCE:g} s"
        problem: str | None = json.loads(answer or '{"error": "its launcher ended"}').get("error")
        return problem

    @classmethod
    def open(cls, mode: Mode | None = None) -> Sandbox:
        """The strongest sandbox that this machine allows, tried out.

        Args:
            mode: this one only; for tests.

        Raises:
            RunFailed: the machine allows none; says what is missing.
        """
        if sys.platform != "linux" or this_machine() is None:
            raise RunFailed(
                f"programs cannot be run safely on {sys.platform} {platform.machine()}",
                todo=f"use Linux on one of {', '.join(MACHINES)}",
            )
        problems = []
        for choice in _MODES if mode is None else (mode,):
            try:
                sandbox = cls(choice)
            except RunFailed as error:
                problems.append(error.what)
                continue
            try:
                sandbox._try_out()
                return sandbox
            except RunFailed as error:
                sandbox.close()
                problems.append(error.what)
        raise RunFailed(
            f"programs cannot be run safely here: {'; '.join(problems)}",
            todo="allow user namespaces (sysctl user.max_user_namespaces; for Docker"
            " --security-opt seccomp=unconfined), or use Linux 6.2 with Landlock and seccomp",
        )

    def _try_out(self) -> None:
        """See that a program runs, and that what must be denied is."""
        outside = Path(self._temporary.name) / "outside"
        outside.write_text("for no program", encoding="utf-8")
        outside.chmod(0o666)
        tests = f"found = broken_out({str(outside)!r})\nassert found == [], found"
        outcome = self.run(_CHECK_CANDIDATE, tests)
        if not outcome.passed:
            raise RunFailed(f"no sandbox with {self.mode}: tried out, {outcome.detail}")

    def run(
        self,
        candidate: str,
        tests: str,
        limits: Limits | None = None,
        redefines: Collection[str] = (),
    ) -> Outcome:
        """Run one program to its verdict; may be called from many threads.

        Args:
            candidate, tests, redefines: see `Program`.

        Raises:
            RunFailed: the sandbox itself failed, so there is no verdict.
        """
        return self._run(Program(candidate, tests, redefines), limits or Limits(), self._jobs)

    def _run(self, program: Program, limits: Limits, jobs: _Jobs) -> Outcome:
        job, theirs = socket.socketpair()
        with job:
            jobs.add(job)
            try:
                with theirs, self._lock:
                    message = json.dumps(asdict(limits)).encode()
                    socket.send_fds(self._control, [message], [theirs.fileno()])
                answer = self._ask(job, program, limits)
            except OSError as error:
                raise RunFailed(f"the sandbox failed: {error}") from error
            finally:
                jobs.discard(job)
        if "error" in answer:
            raise RunFailed(f"no sandbox with {self.mode}: {answer['error']}")
        return Outcome(**answer)

    def _ask(self, job: socket.socket, program: Program, limits: Limits) -> dict[str, Any]:
        job.settimeout(limits.wall_seconds + _PATIENCE)
        request = program._asdict() | {"redefines": sorted(program.redefines)}
        job.sendall(json.dumps(request).encode())
        job.shutdown(socket.SHUT_WR)
        data = bytearray()
        while some := job.recv(1 << 16):
            data += some
        if not data:
            raise OSError("its supervisor ended")
        found: dict[str, Any] = json.loads(data)
        return found

    def run_all(
        self, programs: Iterable[Program], workers: int, limits: Limits | None = None
    ) -> Iterator[Outcome]:
        """Run programs, several at a time; outcomes in the programs' order, as they come.

        Programs are taken from the iterable only as fast as they are run. Closing the
        iterator early ends those that run.
        """
        waiting: deque[Future[Outcome]] = deque()
        jobs = _Jobs()
        limits = limits or Limits()
        with ThreadPoolExecutor(workers) as threads:
            try:
                for program in programs:
                    waiting.append(threads.submit(self._run, program, limits, jobs))
                    if len(waiting) >= 2 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
                jobs.end()

    def close(self) -> None:
        """End all programs and the process that starts them."""
        self._jobs.end()
        self._control.close()
        self._process.wait()
        self._temporary.cleanup()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
