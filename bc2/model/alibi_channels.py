"""ALiBi as a few more channels of queries and keys, for kernels that take no bias.

For a query at position i and a key at position j, ALiBi adds slope · (j - i) to the score. A score
is a product over channels, so channels whose product is slope · j - slope · i add the same, and a
fused kernel neither reads nor keeps a bias of [H, S, S].

slope · j is far larger than what is left of it after slope · i is taken away. Each is the sum of
three columns, high, middle and low. The first two are bf16 and the third is what remains, so that
16 bits hold slope · j to 24 bits and fp32 to 40. Query and key have them by turns with a constant,

    query  16  -high_i  16    -middle_i  16   -low_i
    key    high_j  16   middle_j  16     low_j  16

before their own channels, and two of zeros, because kernels take multiples of 8. The products
are exact, and a sum in this order is small again before anything can be lost from it: without
order or with fewer columns, fp32 would lose 8 of its 24 bits at position 4,096. The constant
keeps fp16 within its range up to positions of 90,000.

Shapes:
    T  tokens      H  heads      K  channels of a head
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bc2.model.attention_sizes import ALIBI_CHANNELS

_CONSTANT = 16.0


@dataclass(frozen=True)
class AlibiChannels:
    """The channels of all tokens and heads; made once for all layers of a pass."""

    query: Tensor
    """[T, H, ALIBI_CHANNELS]"""
    key: Tensor
    """[T, H, ALIBI_CHANNELS]"""
    scale: float
    """What the kernel must multiply products of queries and keys by."""
    factor: float
    """What queries are multiplied by before: scale · factor is 1 / √K."""

    def join(
        self, q: Tensor, k: Tensor, v: Tensor, heads: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys with these channels, and values with zeros.

        Args:
            q, k, v: [..., T, H, K] of `heads`, in the dtype that the channels were made for.

        Returns:
            [..., T, H, K + ALIBI_CHANNELS] each.
        """
        if self.factor != 1.0:
            q = q * self.factor
        return (
            _joined(self.query[:, heads], q),
            _joined(self.key[:, heads], k),
            F.pad(v, (0, ALIBI_CHANNELS)),
        )


def _joined(channels: Tensor, x: Tensor) -> Tensor:
    return torch.cat((channels.expand(*x.shape[:-1], -1), x), dim=-1)


@torch.no_grad()
def alibi_channels(
    slopes: Tensor, positions: Tensor, head_dim: int, dtype: torch.dtype
) -> AlibiChannels:
    """The channels for tokens at some positions.

    Args:
        slopes: [H].
        positions: int64 [T].
        head_dim: K.
        dtype: that of queries and keys.
    """
    scale = head_dim**-0.5
    if dtype in (torch.float32, torch.float64):
        # A kernel may multiply the queries by the scale instead of the products. A power of two
        # rounds nothing. In 16 bits the factor would round the queries once more.
        scale = 2.0 ** round(math.log2(scale))
    place = slopes.double() * positions.double()[:, None] / (scale * _CONSTANT)  # [T, H]
    high = place.bfloat16().double()
    middle = (place - high).bfloat16().double()
    low = place - high - middle
    fixed, zero = torch.full_like(place, _CONSTANT), torch.zeros_like(place)
    query = torch.stack((fixed, -high, fixed, -middle, fixed, -low, zero, zero), dim=-1)
    key = torch.stack((high, fixed, middle, fixed, low, fixed, zero, zero), dim=-1)
    return AlibiChannels(query.to(dtype), key.to(dtype), scale, head_dim**-0.5 / scale)
