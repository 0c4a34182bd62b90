"""The rows of a run's two logs, as they are read. Imports no torch.

``metrics.jsonl`` has what a run computed, ``timing.jsonl`` how long that took and what became of
each attempt; `bc2.train.logs.run_log` writes both. All that is read of them is read here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bc2.console import warn

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"

#: The parts of a step, whose seconds a "step" row of ``timing.jsonl`` has; as they follow each
#: other.
STEP_PARTS = ("data", "forward", "head", "backward", "optimizer", "save")

#: One line of a log: ``event``, and what there is to say about it.
LogRow = dict[str, Any]


def read_rows(path: Path) -> Iterator[LogRow]:
    """The rows of a log; none if there is no such file. See `LogFollower.rows`."""
    follower = LogFollower(path)
    try:
        follower.is_new()
        yield from follower.rows()
    finally:
        follower.close()


def last_row(content: bytes, event: str) -> LogRow | None:
    """The last row of an event in a log's content."""
    for line in reversed(content.splitlines()):
        row: LogRow = json.loads(line)
        if row["event"] == event:
            return row
    return None


def parse_row(line: bytes) -> LogRow | None:
    """A JSON object; None if the line is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class LogFollower:
    """Reads a log as it grows, each row once."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0
        self._lines = 0
        self._stream: BinaryIO | None = None

    def is_new(self) -> bool:
        """Whether the file is another one than before, and will be read from its beginning.

        True of a file seen for the first time. A run that goes back to a checkpoint puts
        another ``metrics.jsonl`` in place of the old one.
        """
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        # The old file is kept open, so that its inode cannot be given to the new one.
        if self._stream is not None and there.st_size >= self._offset:
            here = os.fstat(self._stream.fileno())
            if os.path.samestat(here, there):
                return False
        self.close()
        self._stream = self.path.open("rb")
        self._offset = self._lines = 0
        return True

    def rows(self) -> Iterator[LogRow]:
        """The rows appended since the last call.

        A last line without its end waits for the next call: it is being written, or a crash
        cut it off. Another line that is no row (of a disk that lost power) is left out with a
        warning.
        """
        if self._stream is None:
            return
        self._stream.seek(self._offset)
        # By newline alone: a text may hold U+2028, which str.splitlines() breaks at.
        for line in self._stream:
            if not line.endswith(b"\n"):
                return
            self._offset += len(line)
            self._lines += 1
            if (row := parse_row(line)) is not None:
                yield row
            else:
                warn(f"{self.path}:{self._lines} is no row of a log and is left out")

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
