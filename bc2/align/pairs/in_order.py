"""Whether a pair is in order."""

from __future__ import annotations

from torch import Tensor


def in_order(margins: Tensor) -> Tensor:
    """1 where the chosen answer is above the rejected one, ½ for a tie, else 0: [P] -> fp64 [P]."""
    return (margins > 0).double() + 0.5 * (margins == 0).double()
