"""Keys and values of the tokens a model has already read, for generation.

Shapes:
    B  rows (sequences)      N  active rows      T  new tokens of all active rows
    S  capacity in tokens      H  heads      K  channels of a head
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bc2.model.attention import Backend, attend
from bc2.model.model_config import ModelConfig


class KVCache:
    """A key-value cache with a row for each sequence; a forward pass appends to the active rows.

    Args:
        config: the configuration of the model.
        rows: B, the number of sequences.
        capacity: S, the most tokens in a row.
        dtype, device: of the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (config.num_layers, rows, capacity, config.num_heads, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.filled = [0] * rows
        self.active = list(range(rows))

    def select(self, rows: Sequence[int]) -> None:
        """Make these rows active, in this order; forward passes leave the others unchanged."""
        self.active = list(rows)

    def lengths(self, device: torch.device) -> Tensor:
        """The number of tokens in each active row: int64 [N]."""
        return torch.tensor([self.filled[row] for row in self.active], device=device)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        slopes: Tensor | None,
        backend: Backend,
    ) -> Tensor:
        """Store the new keys and values of a layer, then attend to all tokens of each row.

        Args:
            q, k, v: [T, H, K] of the new tokens, packed in the order of the active rows.
            cu_seqlens: int32 [N+1], boundaries of the rows in the new tokens.
            slopes, backend: as of `attend`.

        Returns:
            [T, H, K].
        """
        new = cu_seqlens.diff().tolist()
        keys, values = [], []
        parts = zip(self.active, new, torch.split(k, new), torch.split(v, new), strict=True)
        for row, count, some_k, some_v in parts:
            end = self.filled[row] + count
            self.keys[layer, row, self.filled[row] : end] = some_k
            self.values[layer, row, self.filled[row] : end] = some_v
            keys.append(self.keys[layer, row, :end])
            values.append(self.values[layer, row, :end])
        held = torch.tensor([0, *(len(some) for some in keys)], device=q.device)
        out: Tensor = attend(
            q,
            torch.cat(keys),
            torch.cat(values),
            cu_seqlens,
            max(new),
            slopes,
            backend,
            cu_seqlens_k=held.cumsum(0, dtype=torch.int32),
            max_seqlen_k=max(len(some) for some in keys),
        )
        return out

    def advance(self, cu_seqlens: Tensor) -> None:
        """Record that a forward pass has stored its tokens in all layers."""
        for row, count in zip(self.active, cu_seqlens.diff().tolist(), strict=True):
            self.filled[row] += count
