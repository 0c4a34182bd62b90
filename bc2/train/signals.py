"""Ctrl-C and SIGTERM: abandon the step under way, save, and exit with the right code."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from bc2.console import note


class Stopped(Exception):
    """A signal came: the step under way is to be abandoned. The loop always catches it."""


@dataclass
class Stop:
    """Whether to stop: set by the first signal; a second signal ends the process at once."""

    signum: int | None = None
    at: float = 0.0
    """When it came, monotonic seconds."""

    def __bool__(self) -> bool:
        return self.signum is not None

    def check(self) -> None:
        """Called where a step or an evaluation can be abandoned. Raises: Stopped after a signal."""
        if self:
            raise Stopped

    def follow(self) -> NoReturn:
        """Stop because some rank got a signal. Raises: Stopped, always."""
        if not self:
            self.signum, self.at = signal.SIGTERM, time.monotonic()
        raise Stopped

    def seconds(self) -> float:
        """Seconds since the signal came."""
        return time.monotonic() - self.at


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a flag for as long as the block runs."""
    stop = Stop()

    def handle(signum: int, _frame: FrameType | None) -> None:
        if stop:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        stop.signum, stop.at = signum, time.monotonic()
        note(f"{signal.Signals(signum).name}: saving the last completed step; again to stop now")

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
