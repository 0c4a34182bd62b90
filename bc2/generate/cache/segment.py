"""New tokens of one sequence in a forward pass. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """Consecutive new tokens of one sequence."""

    start: int
    """The position of the first: tokens before it, whose keys are in `blocks`."""
    length: int
    """New tokens, at least one."""
    blocks: Sequence[int]
    """Of the sequence, from its beginning to the last token that is stored."""
    stored: int = -1
    """How many of the new tokens, from the first on, are written into the cache; -1: all."""

    @property
    def num_stored(self) -> int:
        return self.length if self.stored < 0 else self.stored
