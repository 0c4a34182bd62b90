"""What a program may use."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bc2.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What one program may use; its candidate and its tests each, except for time and output.

    Raises:
        UsageError: a limit is not above zero.
    """

    cpu_seconds: int = 10
    """Processor time, seconds."""

    wall_seconds: float = 10.0
    """Time from start to verdict, seconds."""

    memory_bytes: int = 1 << 30
    """Address space, bytes."""

    processes: int = 64
    """Threads. No program may start another process, whatever this says."""

    open_files: int = 64
    """Open files."""

    file_bytes: int = 64 << 20
    """All files in the program's own directory, bytes."""

    output_bytes: int = 64 << 10
    """How much of standard output and error is kept, bytes; more is read and dropped."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise UsageError(f"limit {field.name} is {value}", todo="give a number above zero")
