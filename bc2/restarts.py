"""Whether ranks that failed are worth starting again.

Crashes, signals and lost machines pass; what is wrong with a recipe, its data, a checkpoint or
a disk does not, and neither does what kills every start at the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: So many starts in a row may come no further than the furthest before them.
PATIENCE = 3

#: What is waited before a start that follows such ones, seconds for each of them.
PAUSE_S = 5.0


@dataclass
class Restarts:
    """The starts of one run, as its launcher counts them.

    Attributes:
        most: starts after the first one.
        steps: the file that `bc2.ranks.tell_step` writes.
        made: starts after the first one, so far.
        refused: why there is no other one; None while there may be, and where nobody asked.
    """

    most: int
    steps: Path
    made: int = 0
    refused: str | None = None
    _furthest: int = 0
    _fruitless: int = 0

    def again(self, *, lasting: bool) -> float | None:
        """Judge a start that failed.

        Args:
            lasting: it would fail in the same way again.

        Returns:
            What to wait before the next start, seconds; None: there is none.
        """
        if not self.most:
            return None
        self._look()
        if lasting:
            self.refused = "the same would come again"
        elif self._fruitless >= PATIENCE:
            self.refused = f"the last {PATIENCE} starts came no further than step {self._furthest}"
        elif self.made >= self.most:
            self.refused = f"all {self.most} restarts are used up"
        if self.refused is not None:
            return None
        self.made += 1
        return PAUSE_S * self._fruitless

    def _look(self) -> None:
        """How far the start came that just ended."""
        told = self.steps.read_text() if self.steps.exists() else ""
        step = int(told or 0)
        if step > self._furthest:
            self._furthest, self._fruitless = step, 0
        elif self.made:
            # The first one had nothing before it.
            self._fruitless += 1
