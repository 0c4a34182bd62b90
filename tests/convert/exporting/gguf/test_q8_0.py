"""Blocks of 8-bit numbers are those of the gguf package, which are llama.cpp's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from torch import Tensor

from bc2.convert.exporting.gguf.q8_0 import to_q8_0


def drawn(scale: float) -> Tensor:
    return torch.randn(7, 96, generator=torch.Generator().manual_seed(0)) * scale


HALVES = torch.arange(-64, 64).reshape(2, 64) / 2 * (127 / 31.5)  # scaled, half of them end in .5
ROWS = {
    "drawn": drawn(1.0), "small": drawn(1e-6),
    "large": drawn(1e5), "zeros": torch.zeros(2, 64), "one in a block": torch.eye(64)[:3] * -3.5,
    "halves": HALVES, "signs of zero": torch.tensor([0.0, -0.0, 1.0, -1.0] * 8)[None],
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_bit_for_bit(name: str) -> None:
    made = to_q8_0(ROWS[name])
    right = quantize(ROWS[name].numpy(), GGMLQuantizationType.Q8_0)
    assert made.shape == right.shape
    assert np.array_equal(made.numpy(), right)


def test_each_number_is_within_half_a_step() -> None:
    made = to_q8_0(drawn(1.0)).view(-1, 34)
    scale = made[:, :2].contiguous().view(torch.float16).float()
    back = made[:, 2:].contiguous().view(torch.int8) * scale
    assert ((back - drawn(1.0).view(-1, 32)).abs() <= 0.51 * scale + 127 * 2**-11 * scale).all()
