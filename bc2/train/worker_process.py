"""Work in a process of its own: asked a line of JSON at a time, answering with one.

A process of its own has its own peak of memory, and when it crashes or runs out of memory
its parent does not.
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

Answer = dict[str, Any]

#: Lines of a dead child's stderr that are searched for a reason.
_TAIL = 50


class WorkerFailed(Exception):
    """A child could not do what it was asked; the text says why."""


class WorkerProcess:
    """The parent's end. A child that waits to be asked uses no processor.

    Args:
        module: run as ``python -m``; it calls `serve`.
        first: the line that it is built from, see `begin`.
        environment: of the process; this one's if None.
    """

    def __init__(self, module: str, first: str, environment: Mapping[str, str] | None = None):
        self._first = first
        # A file, not a pipe: a pipe that nobody reads would stop the child when it is full.
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment,
            # Ctrl-C is for the parent, which ends its children.
            start_new_session=True,
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
        """Wait until the child is built. Raises: WorkerFailed if it cannot be."""
        self.tell_first()
        self.hear()

    def ask(self, do: str, **arguments: Any) -> Answer:
        """Have a method called, and its answer.

        Raises:
            WorkerFailed: the method raised, or the child died.
        """
        self.tell(do, **arguments)
        return self.hear()

    def tell_first(self) -> None:
        """`begin` without waiting: `hear` does."""
        self._write(self._first)

    def tell(self, do: str, **arguments: Any) -> None:
        """`ask` without waiting: `hear` does."""
        self._write(json.dumps({"do": do, **arguments}))

    def close(self) -> None:
        """End the child, and whatever compilers it started, and wait for it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # What a dead child did not read is not missed.
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process.wait()
        self._stderr.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # A dead child says so when it is heard.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def hear(self) -> Answer:
        """What the child answers to what it was told. Raises: WorkerFailed, as `ask`."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise WorkerFailed(self._why_dead())
        answer: Answer = json.loads(said)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def _why_dead(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "killed by the system, which does that when memory runs out"
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.readlines()[-_TAIL:] if line.strip()]
        last = lines[-1] if lines else "it said nothing"
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return f"died ({how}): {last}"


def serve(build: Callable[[str, ExitStack], object]) -> int:
    """The child's end: answer until stdin ends, which it does with the parent.

    Args:
        build: makes the object whose methods are called, from the first line; what it holds
            open ends with the stack.

    Returns:
        The exit status.
    """
    answers = _private_stdout()

    def say(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    with ExitStack() as held:
        try:
            served = build(sys.stdin.readline(), held)
            say({"ready": True})
            for line in sys.stdin:
                asked = json.loads(line)
                do: Callable[..., Answer] = getattr(served, asked.pop("do"))
                say(do(**asked))
        except BrokenPipeError:
            return 1
        except Exception as error:  # whatever it fails with is its answer
            traceback.print_exc()
            say({"error": _reason(error)})
            return 1
    return 0


def _private_stdout() -> TextIO:
    """stdout for answers alone: what libraries print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
