"""Rotary angles rounded as the program rounds them that ours is compared with.

llama.cpp makes the angle of each pair of channels of the one before, by a multiplication in fp32.
At position 500 of a model of 5 M parameters that alone changes logits by 1e-4; the weights do not
show below it. So ours computes the same angles where it stands beside llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from unittest.mock import patch

import torch
from torch import Tensor

from bc2.model.rope_scaling import RopeScaling
from bc2.model.rotary import frequencies, table_of_angles

#: ``exact``: position times frequency. ``chained``: as llama.cpp has them.
Angles = Literal["exact", "chained"]


@contextmanager
def rounded_angles(angles: Angles) -> Iterator[None]:
    """Have models compute with such angles, in all of this process."""
    if angles == "exact":
        yield
        return
    with patch("bc2.model.transformer.rotary_table", chained_table):
        yield


def chained_table(
    positions: Tensor, head_dim: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """`bc2.model.rotary.rotary_table` with llama.cpp's rounding."""
    step = torch.tensor(base, dtype=torch.float32).pow(-2.0 / head_dim)
    angle = positions.float()
    chain = []
    for _ in range(head_dim // 2):
        chain.append(angle)
        angle = angle * step
    stretched = frequencies(head_dim, base, scaling) / frequencies(head_dim, base, None)
    return table_of_angles(torch.stack(chain, dim=1) * stretched, scaling)
