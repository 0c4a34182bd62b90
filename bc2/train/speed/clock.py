"""A clock for the parts of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up the seconds of named parts.

    Without `wait` it costs two readings of a monotonic clock, so a run always has it on;
    on a GPU it then measures what the host waited for. With `wait`, a part ends when the
    device has done its work: true times, for a benchmark.

    Args:
        device: what `wait` waits for.
        wait: synchronize with the device around every part.
    """

    def __init__(self, device: torch.device | None = None, *, wait: bool = False):
        self.device = device
        self.waits = wait and device is not None and device.type == "cuda"
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a part, also if the block raises."""
        began = self.now()
        try:
            yield
        finally:
            self.add(name, self.now() - began)

    def now(self) -> float:
        """Monotonic seconds, after the device's work if this clock waits."""
        if self.waits:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken
