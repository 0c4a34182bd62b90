"""Worker processes: each request and each answer is one line of JSON.

A worker has its own peak of memory, and if it crashes or runs out of memory its parent does
not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TextIO

from bc2.errors import out_of_memory

Answer = dict[str, Any]

#: Lines of a dead worker's stderr that are searched for a reason.
_TAIL = 50


class WorkerFailed(Exception):
    """A worker could not do what it was asked to; the text says why.

    Args:
        out_of_memory: whether it failed because memory ran out.
    """

    def __init__(self, text: str, *, out_of_memory: bool = False):
        super().__init__(text)
        self.out_of_memory = out_of_memory


class WorkerProcess:
    """A worker, seen from its parent. While it waits for a request it uses no processor.

    Args:
        module: run as ``python -m``; it calls `serve`.
        first: the line from which the worker builds what it serves.
        environment: of the process; this one's if None.
    """

    def __init__(self, module: str, first: str, environment: Mapping[str, str] | None = None):
        self._first = first
        # A file, not a pipe: a pipe that nobody reads would stop the worker when it is full.
        self._stderr = tempfile.TemporaryFile("w+", errors="replace", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment,
            # Ctrl-C is for the parent, which ends its workers.
            start_new_session=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def begin(self) -> None:
        """Send the first line and wait until the worker is ready.

        Raises:
            WorkerFailed: it cannot build what it serves.
        """
        self.send_first()
        self.receive()

    def ask(self, do: str, **arguments: Any) -> Answer:
        """Call a method in the worker and wait for its answer.

        Raises:
            WorkerFailed: the method raised, or the worker died.
        """
        self.send(do, **arguments)
        return self.receive()

    def send_first(self) -> None:
        """Send the first line without waiting for the answer: `receive` does."""
        self._write(self._first)

    def send(self, do: str, **arguments: Any) -> None:
        """Call a method without waiting for the answer: `receive` does."""
        self._write(json.dumps({"do": do, **arguments}))

    def fileno(self) -> int:
        """What has something to read when `receive` would not wait."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def close(self) -> None:
        """End the worker, and the compilers it may have started, and wait for it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # The worker may have died before it read everything.
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process.wait()
        self._stderr.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # If the worker is dead, `receive` says so.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def receive(self) -> Answer:
        """Wait for the answer to what was sent. Raises: WorkerFailed, as `ask`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"], out_of_memory=answer["out_of_memory"])
        return answer

    def _death(self) -> WorkerFailed:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            why = "killed by the system, which does that when memory runs out"
            return WorkerFailed(why, out_of_memory=True)
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.readlines()[-_TAIL:] if line.strip()]
        last = lines[-1] if lines else "it said nothing"
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return WorkerFailed(f"died ({how}): {last}")


def serve(build: Callable[[str, ExitStack], object]) -> int:
    """Run a worker: answer requests until stdin ends, which it does with the parent.

    Args:
        build: makes the object whose methods are called, from the first line; what it opens,
            it leaves to the stack to close.

    Returns:
        The exit status.
    """
    answers = _private_stdout()

    def send(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    with ExitStack() as held:
        try:
            served = build(sys.stdin.readline(), held)
            send({"ready": True})
            for line in sys.stdin:
                request = json.loads(line)
                method: Callable[..., Answer] = getattr(served, request.pop("do"))
                send(method(**request))
        except BrokenPipeError:
            return 1
        except Exception as error:  # any error is the answer
            traceback.print_exc()
            send({"error": _reason(error), "out_of_memory": out_of_memory(error)})
            return 1
    return 0


def _private_stdout() -> TextIO:
    """Keep stdout for answers: what libraries print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
