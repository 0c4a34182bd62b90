"""The memory that holds keys and values, in blocks.

Shapes:
    L  layers      N  blocks      H  key heads      S  tokens of a block      K  channels of a head
    T  new tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class KVCache:
    """Keys and values of `blocks` blocks, in all layers.

    Args:
        layers: L.
        heads: H, the key heads on this rank; there may be fewer than query heads.
        head_dim: K.
        window: how many tokens each attends to, the last of them itself; None: all before it too.
        poison: fill freed blocks with NaN, to find in tests what reads them.
    """

    def __init__(
        self,
        blocks: int,
        size: int,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        window: int | None = None,
        poison: bool = False,
    ):
        self.size = size
        self.window = window
        self.poison = poison
        shape = (layers, 2, blocks, heads, size, head_dim)
        with torch.inference_mode(False):  # it is written in other modes than it is made in
            self.data = torch.empty(shape, dtype=dtype, device=device)
        if poison:
            self.data.fill_(math.nan)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer: [N, H, S, K] each."""
        keys, values = self.data[index].unbind(0)
        return keys, values

    def first_block(self, position: int) -> int:
        """The first block of a sequence that a token at this position attends to."""
        if self.window is None:
            return 0
        return max(0, position - self.window + 1) // self.size

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero blocks that are taken: what attention masks must be finite."""
        if blocks:
            self.data.index_fill_(2, self._index(blocks), 0.0)

    def free(self, blocks: Sequence[int]) -> None:
        """Tell that nobody uses these blocks."""
        if self.poison and blocks:
            self.data.index_fill_(2, self._index(blocks), math.nan)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy blocks, all layers of each; what is copied is what was there before the call."""
        if sources:
            for layer in self.data:
                held = layer.index_select(1, self._index(sources))
                layer.index_copy_(1, self._index(targets), held)

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store new keys and values of a layer, [T, H, K] each.

        Args:
            rows: int64 [T · H], from `rows_of`.
        """
        for part, new in enumerate((keys, values)):
            flat = self.data[layer, part].view(-1, new.shape[-1])
            flat.index_copy_(0, rows, new.reshape(-1, new.shape[-1]))

    def rows_of(self, blocks: Tensor, places: Tensor) -> Tensor:
        """Where the heads of tokens go, by their block [T] and place in it [T]: int64 [T · H]."""
        heads = torch.arange(self.data.shape[3], device=blocks.device)
        rows = (blocks[:, None] * len(heads) + heads) * self.size + places[:, None]
        return rows.flatten()

    def tensor(self, array: np.ndarray) -> Tensor:
        """An array on the cache's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.data.device)

    def _index(self, blocks: Sequence[int]) -> Tensor:
        return torch.tensor(blocks, dtype=torch.int64, device=self.data.device)
