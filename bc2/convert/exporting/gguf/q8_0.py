"""GGUF's Q8_0: blocks of 32 numbers as 8-bit integers and an fp16 scale."""

from __future__ import annotations

import torch
from torch import Tensor

#: Numbers of a block, and its bytes: the scale, and one for each number.
BLOCK, BLOCK_BYTES = 32, 34


def to_q8_0(rows: Tensor) -> Tensor:
    """The bytes of some rows, as `gguf.quants.quantize` and llama.cpp make them, bit for bit.

    Args:
        rows: fp32 [n, C], C a multiple of 32.

    Returns:
        uint8 [n, C / 32 · 34]. A scale beyond fp16 is infinity.
    """
    blocks = rows.view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * torch.where(scale == 0, 0.0, 1 / scale)
    # Halves away from zero: torch.round has them go to even numbers.
    size = scaled.abs()
    whole = size.floor()
    rounded = (whole + (2 * (size - whole)).floor()).copysign(scaled)
    made = torch.empty(len(blocks), BLOCK_BYTES, dtype=torch.uint8)
    made[:, :2] = scale.to(torch.float16).view(torch.uint8)
    made[:, 2:] = rounded.to(torch.int8).view(torch.uint8)
    return made.view(len(rows), -1)
