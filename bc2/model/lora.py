"""Adapters of low rank (LoRA, Hu et al. 2021, arXiv 2106.09685).

Beside a weight W [O, I] stand A [r, I] and B [O, r], and the layer says W x + s B A x with
s = alpha / r. A is drawn from U(-1/√I, 1/√I), as PEFT draws it, and B is zero, so that training
begins with the base. Matrices of rank r hold r (I + O) numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bc2.model.adapters import INFIX, Adapter
from bc2.model.transformer import Linear, Transformer

if TYPE_CHECKING:
    from bc2.model.lora_config import LoraConfig

#: The names of its matrices in an adapter.
A, B = "lora_A", "lora_B"


class Lora(Adapter):
    """s B A x: [T, I] -> [T, O]."""

    def __init__(self, linear: Linear, rank: int, scale: float):
        super().__init__()
        self.scale = scale
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features))
        self.lora_B = nn.Parameter(torch.empty(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return low_rank(x, self.lora_A, self.lora_B, self.scale)

    def draw(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        if name == B:
            return torch.zeros(shape)
        bound = shape[1] ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def low_rank(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """See `Lora`."""
    # Scaled where it is narrow.
    return F.linear(F.linear(x, a) * scale, b)


@dataclass(frozen=True)
class AddLora:
    """Puts a `Lora` beside some matrices of every layer: `bc2.model.adapters.AddAdapters`."""

    rank: int
    scale: float
    targets: tuple[str, ...]

    def __call__(self, model: Transformer) -> None:
        for layer in model.model.layers:
            for name, module in layer.named_modules():
                if isinstance(module, Linear) and name.rpartition(".")[2] in self.targets:
                    module.adapter = Lora(module, self.rank, self.scale)


def add_lora(config: LoraConfig) -> AddLora:
    """What puts the adapters of a recipe into a model."""
    return AddLora(config.rank, config.alpha / config.rank, tuple(config.targets))


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Add the adapters of a model to its weights, which then says the same without them."""
    for module in model.modules():
        if isinstance(module, Linear) and isinstance(module.adapter, Lora):
            lora = module.adapter
            merged = merged_weight(module.weight, lora.lora_A, lora.lora_B, lora.scale)
            module.weight.copy_(merged)
            module.adapter = None


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s B A in fp32: [O, I], [r, I], [O, r] -> [O, I]."""
    return weight.float().addmm(b.float(), a.float(), alpha=scale)


def adapted_weights(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By the name of each weight that a `Lora` stands beside, those of its A and B.

    Args:
        names: of adapters' parameters.
    """
    places = {name.removesuffix(INFIX + A) for name in names if name.endswith(INFIX + A)}
    return {f"{at}.weight": (f"{at}{INFIX}{A}", f"{at}{INFIX}{B}") for at in sorted(places)}
