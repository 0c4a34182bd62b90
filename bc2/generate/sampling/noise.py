"""Random numbers of a draw, as a pure function of its seed, place and token.

Nothing has a state: a sequence that is stopped and taken up again, or decodes beside others, gets
the numbers that it would have got.

Shapes:
    B  sequences      M  numbers of each
"""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel(keys: Tensor, places: Tensor, ids: Tensor, stream: int) -> Tensor:
    """Independent numbers from the standard Gumbel distribution: fp32 [B, M].

    The argmax of log-probabilities plus such numbers is a draw from the distribution ("Gumbel-max
    trick", arXiv 1411.0030, section 2).

    Args:
        keys: int64 [B], from `bc2.generate.sampling.seeds`.
        places: int64 [B], the number of the new token.
        ids: int64 [B, M] or [M], what each number belongs to.
        stream: tells several uses of the same ids apart.
    """
    state = _mixed(_mixed(keys + stream * _STEP) + places * _STEP)
    bits = _mixed(state[:, None] + ids * _STEP)
    # 53 bits, in (0, 1): small ones, which give the largest results, have their full precision.
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log1p(-uniform.float()))


# SplitMix64 (Steele et al. 2014, OOPSLA): its step and the multipliers of its output function,
# as signed numbers. Products wrap around.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
