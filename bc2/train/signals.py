"""Ctrl-C and SIGTERM: finish the step, save, and leave with the right exit code."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from bc2.console import note


@dataclass
class Stop:
    """Set by the first signal; a second one ends the process at once."""

    signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a flag for as long as the block runs."""
    stop = Stop()

    def handle(signum: int, _frame: FrameType | None) -> None:
        if stop:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        stop.signum = signum
        note(f"{signal.Signals(signum).name}: finishing this step and saving; again to stop now")

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
