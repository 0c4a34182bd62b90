"""The logs that a run writes: what it computed, and apart from it how long that took.

``metrics.jsonl`` holds only what follows from the recipe and the data, so that a
resumed run's file is bit for bit an undisturbed one's. Times, restarts and warnings
go to ``timing.jsonl``, which keeps every attempt.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bc2.errors import Bc2Error, from_os_error
from bc2.files import replace_durably
from bc2.train.logs.log_rows import METRICS, TIMING
from bc2.train.logs.trackers import Trackers

#: Bytes read at once from the end of a file.
_BLOCK = 1 << 16

#: What str.splitlines takes for an end of line and JSON does not escape.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def _line(row: Mapping[str, Any]) -> bytes:
    clean = {name: _finite(value) for name, value in row.items()}
    text = json.dumps(clean, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)
    return f"{text}\n".encode()


class Log(Protocol):
    """The log that the loop writes: see `MetricsLog`."""

    def reset(self, content: bytes) -> None: ...

    def content(self) -> bytes: ...

    def row(self, **values: Any) -> None: ...

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def time(self, event: str, **values: Any) -> None: ...

    def close(self) -> None: ...


class NoLog:
    """The log of every rank but the first, which writes for all."""

    def reset(self, content: bytes) -> None:
        pass

    def content(self) -> bytes:
        return b""

    def row(self, **values: Any) -> None:
        pass

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def time(self, event: str, **values: Any) -> None:
        pass

    def close(self) -> None:
        pass


class MetricsLog:
    """Appends to both files of a run folder; a row is visible at once to a reader.

    Times are monotonic seconds since the log was made, and the wall clock beside them
    for people.
    """

    def __init__(self, folder: Path, trackers: Trackers | None = None):
        self.metrics = folder / METRICS
        self.timing = folder / TIMING
        self.trackers = trackers or Trackers()
        self._began = time.monotonic()
        _heal(self.timing)

    def reset(self, content: bytes) -> None:
        """Restore ``metrics.jsonl`` to its content at a checkpoint, and the trackers with it."""
        self.trackers.rewind(content)
        try:
            replace_durably(self.metrics, content)
        except OSError as error:
            raise from_os_error(error, f"writing {METRICS}") from error

    def content(self) -> bytes:
        """The whole lines of ``metrics.jsonl``."""
        data = self.metrics.read_bytes() if self.metrics.exists() else b""
        return data[: data.rfind(b"\n") + 1]

    def row(self, **values: Any) -> None:
        """One row of results; a NaN or Inf of a bad step is written as text."""
        self.rows([values])

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Several rows, all or none of them.

        Raises:
            ResourceError: the disk is full; the file ends with the row before.
        """
        _append(self.metrics, b"".join(map(_line, rows)))
        for row in rows:
            self.trackers.log(row)

    def time(self, event: str, **values: Any) -> None:
        """One row about the run itself, with the time since the attempt began."""
        elapsed = time.monotonic() - self._began
        row = {"event": event, "time": time.time(), "elapsed": elapsed, **values}
        _append(self.timing, _line(row))
        if event == "step":
            self.trackers.log(row)

    def close(self) -> None:
        self.trackers.close()


def _append(path: Path, lines: bytes) -> None:
    """Append whole lines; what a full disk took of them is cut off again."""
    try:
        with path.open("ab", buffering=0) as stream:
            size = stream.seek(0, os.SEEK_END)
            try:
                while lines:
                    lines = lines[stream.write(lines) :]
            except OSError:
                stream.truncate(size)
                raise
    except OSError as error:
        raise _named(error, path) from error


def _named(error: OSError, path: Path) -> Bc2Error:
    """As from_os_error; the error of a write knows no path."""
    return from_os_error(OSError(error.errno, error.strerror, str(path)), f"writing {path.name}")


def _heal(path: Path) -> None:
    """Cut off a last line that a crash left unfinished, or the next row would be part of it."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - _BLOCK)
            stream.seek(begin)
            at = stream.read(end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        stream.truncate(end)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
