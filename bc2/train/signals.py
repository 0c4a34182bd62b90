"""Ctrl-C, SIGTERM, SIGHUP: abandon the step under way, save, and exit with the right code."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from bc2.console import note
from bc2.process.signals import taken


class Stopped(Exception):
    """A signal came: the step under way is to be abandoned. The loop always catches it."""


@dataclass
class Stop:
    """Whether to stop: set by the first signal; a second ends all (`bc2.process.signals`)."""

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
    """Turn the first signal into a flag for as long as the block runs.

    Raises:
        SignalReceived: one came, and yet the block came to its end.
    """
    stop = Stop()

    def handle(signum: int) -> None:
        stop.signum, stop.at = signum, time.monotonic()
        with suppress(RuntimeError):  # the signal came while another line was being written
            name = signal.Signals(signum).name
            note(f"{name}: saving the last completed step; again to stop now")

    with taken(handle):
        yield stop
