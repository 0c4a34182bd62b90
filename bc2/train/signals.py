"""Ctrl-C and SIGTERM: abandon what is under way, save, and leave with the right exit code."""

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
    """A signal came: what is under way is to be abandoned. Never leaves the loop."""


@dataclass
class Stop:
    """Set by the first signal; a second one ends the process at once."""

    signum: int | None = None
    at: float = 0.0
    """When it came, monotonic seconds."""

    def __bool__(self) -> bool:
        return self.signum is not None

    def check(self) -> None:
        """To be called where a step or an evaluation can be abandoned. Raises: Stopped."""
        if self:
            raise Stopped

    def follow(self) -> NoReturn:
        """Stop, because this rank or another one was told to. Raises: Stopped."""
        if not self:
            self.signum, self.at = signal.SIGTERM, time.monotonic()
        raise Stopped

    def seconds(self) -> float:
        """How long ago the signal came."""
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
