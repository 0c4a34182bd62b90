"""Rotary position embedding (arXiv 2104.09864).

Shapes:
    T  tokens      H  heads      K  channels of a head
"""

from __future__ import annotations

import torch
from torch import Tensor

from bc2.model.head_weight import at_least_fp32


def rotary_table(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles for `rotate`, in fp32: each [T, 1, K].

    In 16 bits, neighbouring positions above 256 would have the same angle.

    Args:
        positions: int64 [T].
        head_dim: K.
        base: `ModelConfig.rope_base`.
    """
    channel = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / base ** (channel / head_dim)
    angle = positions.float()[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return (
        torch.cat((cos, cos), dim=-1)[:, None, :],
        torch.cat((-sin, sin), dim=-1)[:, None, :],
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) of [T, H, K], computed in fp32 or wider.

    Channel k is paired with channel k + K/2, as in GPT-NeoX.
    """
    wide = x.to(at_least_fp32(x.dtype))
    # flip instead of chunk and cat: its backward pass is several times faster on a CPU.
    halves = wide.view(*wide.shape[:-1], 2, wide.shape[-1] // 2)
    swapped = halves.flip(-2).flatten(-2)
    return (wide * cos + swapped * sin).to(x.dtype)
