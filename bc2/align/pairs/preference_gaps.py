"""Gaps of the data's scores, told in fifths of their range (the form of Baichuan 2's Table 4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: How many parts the range is cut into.
GAPS = 5

#: Decimals that differences of scores are rounded to: 0.6 - 0.4 is no more than 0.2.
_DECIMALS = 9


def gap_fifths(gaps: npt.NDArray[np.float64], width: float) -> npt.NDArray[np.int64]:
    """Which fifth of the range each gap is in, 1 to 5; the upper edge belongs to a fifth.

    Args:
        gaps: finite.
        width: the range of the scores.
    """
    shares = np.round(gaps / (width or 1.0), _DECIMALS)
    return np.clip(np.ceil(shares * GAPS), 1, GAPS).astype(np.int64)
