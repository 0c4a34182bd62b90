"""A file of JSON lines that has its name only once it is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from bc2.errors import UsageError
from bc2.files import rename_durably, sync_open


class ResultFile:
    """Writes results line by line into ``NAME.partial``, which becomes ``NAME`` at the end.

    Each line is with the operating system when `write` returns, so that all but the line being
    written survive the end of this process.

    Attributes:
        written: lines so far.

    Raises:
        UsageError: there is no such directory, the name is no file's or that of a compressed one,
            or an earlier run left its part.
    """

    def __init__(self, path: Path):
        self.path = path
        self.written = 0
        self._stream: IO[bytes] | None = None
        if path.suffix in (".gz", ".zst"):
            raise UsageError("results are not compressed", where=str(path), todo="end it in .jsonl")
        if not path.parent.is_dir():
            raise UsageError("no such directory", where=str(path.parent), todo="make it first")
        if path.exists() and not path.is_file():
            raise UsageError("not a file to write to", where=str(path), todo="name a file")
        self.partial = path.with_name(f"{path.name}.partial")
        if self.partial.exists():
            raise UsageError(
                "an earlier run left the part of the results that it had, or still writes it",
                where=str(self.partial),
                todo="move it away or delete it",
            )

    def __enter__(self) -> ResultFile:
        self._stream = self.partial.open("xb")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._stream is not None
        try:
            if kind is None:
                self._stream.flush()
                sync_open(self._stream.fileno(), self.partial)
        finally:
            self._stream.close()
        if kind is None:
            rename_durably(self.partial, self.path)
        elif not self.partial.stat().st_size:
            self.partial.unlink()

    def write(self, row: Any) -> None:
        """Add a result."""
        assert self._stream is not None
        line = json.dumps(row, ensure_ascii=False) + "\n"
        self._stream.write(line.encode())
        self._stream.flush()
        self.written += 1
