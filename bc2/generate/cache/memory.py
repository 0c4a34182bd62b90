"""The memory of a cache: what its blocks hold, and who uses them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bc2.generate.cache.blocks import BlockPool
from bc2.generate.cache.kv_cache import KVCache

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig


@dataclass
class Memory:
    """Blocks, counted and held."""

    pool: BlockPool
    cache: KVCache

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        heads: int,
        blocks: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        most_idle: int | None = None,
        poison: bool = False,
    ) -> Memory:
        """A cache for a model.

        Args:
            heads: key heads on this rank.
            blocks, size, most_idle: see `BlockPool`.
            poison: see `KVCache`.
        """
        cache = KVCache(
            blocks,
            size,
            layers=config.num_layers,
            heads=heads,
            head_dim=config.head_size,
            dtype=dtype,
            device=device,
            window=config.sliding_window,
            poison=poison,
        )
        return cls(BlockPool(blocks, size, most_idle), cache)

    def take(self, count: int) -> list[int]:
        """Blocks for one user, zeroed."""
        blocks = self.pool.take(count)
        self.cache.clear(blocks)
        return blocks

    def give_back(self, blocks: Sequence[int]) -> None:
        """Count one user less of a sequence's blocks."""
        self.cache.free(self.pool.give_back(blocks))

    def compact(self, users: Iterable[list[int]]) -> None:
        """Move the used blocks together, so that attention reads few others beside them.

        Args:
            users: the lists of blocks of all sequences; they are changed.
        """
        moves = self.pool.compact()
        self.cache.copy(list(moves), list(moves.values()))
        if self.cache.poison:
            self.cache.free(sorted(set(moves) - set(moves.values())))
        for blocks in users:
            blocks[:] = [moves.get(block, block) for block in blocks]

    def forget_all(self) -> None:
        """Let no block be found again by what it holds."""
        self.cache.free(self.pool.forget_all())


def block_bytes(config: ModelConfig, heads: int, size: int, dtype: torch.dtype) -> int:
    """Bytes of a block: keys and values of `size` tokens in all layers."""
    return 2 * config.num_layers * heads * config.head_size * size * dtype.itemsize
