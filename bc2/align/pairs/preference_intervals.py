"""How far a share of pairs may be off: pairs of one prompt go together.

Shapes: P pairs, K shares, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Draws of as many prompts as there are, and how many are made at once: few, whose counts of
#: prompts the processor's cache holds.
DRAWS, _AT_ONCE = 1_000, 10

#: The bounds of 95% of them.
_BOUNDS = (0.025, 0.975)


class PromptDraws:
    """The prompts of pairs, drawn anew with replacement; the same draws each time."""

    def __init__(self, prompts: npt.NDArray[np.int64]):
        """Args: prompts: [P], equal for pairs of one prompt."""
        known, self._number = np.unique(prompts, return_inverse=True)
        self._count = len(known)

    def prompts(self, mask: npt.NDArray[np.bool_]) -> int:
        """How many prompts some pairs have."""
        return int(np.count_nonzero(np.bincount(self._number[mask], minlength=self._count)))

    def shares(self, values: Floats, masks: npt.NDArray[np.bool_]) -> Floats:
        """The mean of values over some pairs in each draw: [D, K]; NaN where a draw has none.

        All of a share is NaN whose pairs have one prompt: nothing is then known of how prompts
        differ.

        Args:
            values: [P, K], whole or half numbers.
            masks: [P, K], of which pairs each share is.
        """
        columns = np.concatenate([values * masks, masks], axis=1)
        # Sums of halves are exact in 32 bits up to 8 million pairs.
        sums = np.zeros((self._count, columns.shape[1]), np.float32)
        for place, column in enumerate(columns.T):
            sums[:, place] = np.bincount(self._number, column, self._count)
        totals = np.concatenate([drawn @ sums for drawn in self._drawn()]).astype(np.float64)
        whole, weights = np.split(totals, 2, axis=1)
        weights[:, np.count_nonzero(sums[:, values.shape[1] :], axis=0) < 2] = 0
        return np.divide(whole, weights, out=np.full_like(whole, np.nan), where=weights > 0)

    def _drawn(self) -> Iterator[npt.NDArray[np.float32]]:
        """How often each prompt is in some draws: [draws, prompts]."""
        rng, first = np.random.default_rng(0), np.arange(_AT_ONCE)[:, None] * self._count
        for _ in range(DRAWS // _AT_ONCE):
            drawn = rng.integers(0, self._count, (_AT_ONCE, self._count)) + first
            counts = np.bincount(drawn.ravel(), minlength=_AT_ONCE * self._count)
            yield counts.reshape(_AT_ONCE, self._count).astype(np.float32)


def interval(draws: Floats) -> list[float] | None:
    """The bounds of 95% of the draws that have a value; None: there are none."""
    known = draws[np.isfinite(draws)]
    return [float(bound) for bound in np.quantile(known, _BOUNDS)] if len(known) else None
