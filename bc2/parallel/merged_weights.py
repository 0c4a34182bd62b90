"""A model's weights with adapters of low rank added to them, read from the files of both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bc2.model.heads import HEADS
from bc2.model.lora import adapted_weights, merged_weight
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import Stored


@dataclass(frozen=True)
class MergedWeights:
    """W + s B A in fp32 where there is an adapter, and what is stored elsewhere.

    A head beside the adapters is in place of the base's.

    It is a `ShapedSource`, and holds one whole matrix at a time.
    """

    base: Stored
    adapters: Stored
    scale: float
    """s of each adapter: alpha / rank."""

    @cached_property
    def _adapted(self) -> dict[str, tuple[str, str]]:
        return adapted_weights(self.adapters)

    @cached_property
    def _whole(self) -> Stored:
        return with_head(self.base, self.adapters)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._whole.shapes

    def __contains__(self, name: object) -> bool:
        return name in self._whole

    def whole(self, name: str) -> Tensor:
        """All of a weight, in its shape."""
        weight = self._whole.whole(name)
        if name not in self._adapted:
            return weight
        a, b = map(self.adapters.whole, self._adapted[name])
        return merged_weight(weight, a, b, self.scale)

    def read(self, name: str, part: TensorShard, first: int, count: int) -> Tensor:
        if name not in self._adapted:
            return self._whole.read(name, part, first, count)
        if not count:
            return torch.empty(0)
        return part.of(self.whole(name)).reshape(-1)[first : first + count]


def with_head(base: Stored, adapters: Stored) -> Stored:
    """A base, with the head that lies beside adapters of it in place of its own, if one does."""
    head = {name: file for name, file in adapters.files.items() if name in HEADS}
    if not head:
        return base
    body = {name: file for name, file in base.files.items() if name not in HEADS}
    return Stored({**body, **head})
