"""Whether to start the ranks of a run again after they failed.

After a crash, a signal or a lost machine, yes. An error of the recipe, its data, a checkpoint or
a disk would come again, and so would one that ends every start at the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: How many restarts in a row may make no progress.
PATIENCE = 3

#: Seconds to wait before the next start, for each restart without progress.
PAUSE_S = 5.0


@dataclass
class Restarts:
    """Counts the restarts of one run and decides whether to make another.

    Attributes:
        most: restarts that are allowed.
        steps: the file that `bc2.ranks.report_step` writes.
        made: restarts so far.
        refused: why there is no other restart; None while there may be one.
    """

    most: int
    steps: Path
    made: int = 0
    refused: str | None = None
    _furthest: int = 0
    _fruitless: int = 0

    def again(self, *, lasting: bool) -> float | None:
        """Decide whether to restart after a failure.

        Args:
            lasting: the same error would come again.

        Returns:
            Seconds to wait before the restart; None: do not restart.
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
        """Read how many steps the start made that just ended."""
        text = self.steps.read_text(encoding="utf-8") if self.steps.exists() else ""
        step = int(text or 0)
        if step > self._furthest:
            self._furthest, self._fruitless = step, 0
        elif self.made:
            # Not for the first start: there is none before it to compare with.
            self._fruitless += 1
