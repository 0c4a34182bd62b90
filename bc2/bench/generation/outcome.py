"""What a contender did."""

from __future__ import annotations

import zlib
from array import array
from typing import Any, NamedTuple

#: The ids of a prompt, and how many tokens to add to it.
Pair = tuple[list[int], int]


class Outcome(NamedTuple):
    """One pass over the prompts."""

    seconds: float
    first_s: list[float]
    """From the beginning to the first token of each answer."""
    answers: list[list[int]]

    def as_json(self) -> dict[str, Any]:
        """With a checksum in place of each answer, which tells whether two are the same."""
        sums = [zlib.crc32(array("q", ids).tobytes()) for ids in self.answers]
        return {
            "seconds": self.seconds,
            "first_s": self.first_s,
            "lengths": [len(ids) for ids in self.answers],
            "checksums": sums,
        }
