"""MFU as it is read and shown: a share of the device's peak, which nothing can exceed.

A run raises its peak when a step beats it (`bc2.train.schedule.Speed`), so the shares that it
logs are at most 1, and the last of them are of the highest peak. Logs of bc2 before that have
larger ones. Imports no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: What is said of a share above 1.
IMPOSSIBLE = "cannot be: the peak was measured too low"

#: A share is above 1 beyond the rounding of a quotient.
_ABOVE = 1 + 1e-9


def impossible(share: float | None) -> bool:
    """Whether a share of the peak is above 1."""
    return share is not None and share > _ABOVE


def mfu_text(share: float, digits: int = 0, why: str = IMPOSSIBLE) -> str:
    """Percent, and the words that it cannot be above 100."""
    text = f"{100 * share:.{digits}f}%"
    return f"{text} ({why})" if impossible(share) else text


def of_highest_peak(flops: Floats, mfu: Floats) -> Floats:
    """Logged shares, of one process's steps, as shares of the highest peak that it knew.

    Args:
        flops: FLOP/s of the steps; NaN where it was not logged.
        mfu: as logged, each of the peak as it was known then.
    """
    known = np.isfinite(flops) & (mfu > 0)
    if not known.any():
        return mfu
    highest = (flops[known] / mfu[known]).max()
    return np.where(known, flops / highest, mfu)
