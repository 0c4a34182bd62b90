"""The scores of a source: their scale, and the targets that they become.

Two scales in one source are found where they are visible: some prompts have scores between 0 and 1
alone, others have scores above 1, none has both, and none is negative. Scores from 1 to 5 beside
scores from 1 to 10 cannot be told apart: a source's `score_range` says what is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from bc2.data.chats.bad_chat import BadChat
from bc2.data.pairs.pairs import Normalisation
from bc2.errors import DataError

#: Prompts of either scale from which on two scales are visible: fewer may be chance.
_VISIBLE = 3


@dataclass
class ScoreScale:
    """The scores of one source, added one prompt after another."""

    source: str
    stated: tuple[float, float] | None
    """The lowest and the highest score that there may be; None: not said."""
    count: int = 0
    """Scores, whether or not their answers are in a pair."""
    lowest: float = math.inf
    highest: float = -math.inf
    _fractions: list[str] = field(default_factory=list)
    _above: list[str] = field(default_factory=list)
    _mixed: bool = False

    def check(self, scores: Iterable[float]) -> None:
        """Raise BadChat of a score that is outside of the stated range."""
        for score in scores:
            if self.stated is not None and not self.stated[0] <= score <= self.stated[1]:
                low, high = self.stated
                raise BadChat(
                    "bad_score",
                    f"a score of {score:g} is outside of the source's score_range, {low:g} to "
                    f"{high:g}",
                    "divide scores on two scales into two sources, or set the range that they have",
                )

    def add(self, scores: list[float], where: str) -> None:
        """Count the scores of one prompt, which is at `where`."""
        if not scores:
            return
        self.count += len(scores)
        low, high = min(scores), max(scores)
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        fraction = any(0 < score < 1 for score in scores)
        if low < 0 or (fraction and high > 1):
            self._mixed = True
        elif fraction or high > 1:
            places = self._fractions if fraction else self._above
            if len(places) < _VISIBLE:
                places.append(where)

    def check_one(self) -> None:
        """Raise DataError if the scores are visibly on two scales."""
        both = self._fractions, self._above
        if self.stated is not None or self._mixed or min(map(len, both)) < _VISIBLE:
            return
        raise DataError(
            f"scores of source {self.source!r} are on two scales: some prompts have scores between "
            f"0 and 1 alone, others up to {self.highest:g}, and none has both",
            where=f"{self._fractions[0]} and {self._above[0]}",
            todo="divide them into two sources; or, if they are one scale, set the source's "
            "score_range",
        )

    def to_json(self) -> dict[str, Any] | None:
        """What the scores are; None: there are none."""
        if not self.count:
            return None
        return {
            "count": self.count,
            "lowest": self.lowest,
            "highest": self.highest,
            "range": None if self.stated is None else list(self.stated),
        }


@dataclass
class TargetScale:
    """Of the scores of a source's training answers what their normalisation needs."""

    source: str
    count: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    _mean: float = 0.0
    _squares: float = 0.0
    """The sum of squared differences from the mean."""

    def add(self, score: float) -> None:
        """Count a score (Welford 1962: exact where the mean is far from 0)."""
        self.count += 1
        self.lowest, self.highest = min(self.lowest, score), max(self.highest, score)
        before = score - self._mean
        self._mean += before / self.count
        self._squares += before * (score - self._mean)

    def normalisation(
        self, how: Literal["range", "standard", "none"], stated: tuple[float, float] | None
    ) -> Normalisation | None:
        """How scores become targets; None: there are no scores.

        Raises:
            DataError: they differ by less than numbers can hold.
        """
        if not self.count:
            return None
        if how == "none":
            return Normalisation(0.0, 1.0)
        found = Normalisation(self._mean, math.sqrt(self._squares / self.count))
        if how == "range":
            low, high = stated or (self.lowest, self.highest)
            found = Normalisation((low + high) / 2, (high - low) / 2)
        if not found.scale:
            raise DataError(
                f"the scores of source {self.source!r} differ too little to be normalised: from "
                f"{self.lowest:g} to {self.highest:g}",
                todo='multiply them, or set normalise = "none" in the source',
            )
        return found
