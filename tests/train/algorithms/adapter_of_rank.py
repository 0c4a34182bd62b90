"""An adapter of low rank, as in LoRA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bc2.model.adapters import Adapter
from bc2.model.transformer import Linear


class LowRank(Adapter):
    """B A x, with B zero at the beginning."""

    def __init__(self, linear: Linear, rank: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, linear.in_features))
        self.B = nn.Parameter(torch.empty(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A.T @ self.B.T

    def draw(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        if name == "B":
            return torch.zeros(shape)
        return torch.empty(shape).normal_(0.0, 0.1, generator=generator)
