"""How many sequences may wait for a model; more are turned away with when to come again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from bc2.serve.protocol.api_error import ApiError, bad_value, too_many_waiting

#: The last answers that the time until there is room is guessed by.
_ANSWERS = 64

#: The longest time, seconds, after which somebody is told to come again.
_MOST_RETRY = 60


class Admission:
    """Counts the sequences of one model.

    Args:
        running: how many decode together at most.
        waiting: how many more may wait.
    """

    def __init__(self, running: int, waiting: int):
        self._most = running + waiting
        self._waiting = waiting
        self._taken = 0
        self._ended: deque[float] = deque(maxlen=_ANSWERS)

    @contextmanager
    def taken(self, count: int, param: str) -> Iterator[None]:
        """Count so many sequences while the block runs.

        Args:
            param: the field that says how many there are.

        Raises:
            ApiError: there is no room for them now (429), or there will never be (400).
        """
        if count > self._most:
            raise bad_value(
                param, f"the request asks for {count:,} answers, and the server takes "
                f"{self._most:,} at once; send several requests",
            )  # fmt: skip
        if self._taken + count > self._most:
            raise self._refusal(count)
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count
            self._ended.extend([time.monotonic()] * min(count, _ANSWERS))

    def _refusal(self, count: int) -> ApiError:
        """With the seconds until as many sequences will have ended, as it went lately."""
        over = self._taken + count - self._most
        span = time.monotonic() - self._ended[0] if self._ended else 1.0
        seconds = math.ceil(span / max(1, len(self._ended)) * over)
        return too_many_waiting(self._waiting, min(max(1, seconds), _MOST_RETRY))
