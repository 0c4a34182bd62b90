"""Which part of a parameter a rank has, against cutting the tensors by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.parallel.sharding import TensorShard, shard_of

CONFIG = ModelConfig(
    vocab_size=24, hidden_size=24, intermediate_size=36, num_layers=2, num_heads=12,
    context_length=16,
)  # fmt: skip
CHANNELS = 2
RANKS = (1, 2, 3, 4, 6, 12)


def numbered(config: ModelConfig = CONFIG) -> dict[str, Tensor]:
    """Every parameter, no two of its numbers alike."""
    with torch.device("meta"):
        model = Transformer(config)
    return {
        name: torch.arange(p.numel(), dtype=torch.float32).view(p.shape)
        for name, p in model.named_parameters()
    }


def by_hand(name: str, whole: Tensor, rank: int, ranks: int, key_heads: int = 12) -> Tensor:
    """What Megatron-LM's layers have: whole heads, channels and words of one rank."""
    kind = name.split(".")[-2]
    if kind == "W_pack":
        queries = len(whole) - 2 * key_heads * CHANNELS
        parts = whole.split([queries, key_heads * CHANNELS, key_heads * CHANNELS])
        return torch.cat([part.chunk(ranks)[rank] for part in parts])
    if kind in ("gate_proj", "up_proj", "embed_tokens", "lm_head"):
        return whole.chunk(ranks, dim=0)[rank]
    if kind in ("o_proj", "down_proj"):
        return whole.chunk(ranks, dim=1)[rank]
    assert kind.endswith("norm") or kind == "score", (
        f"{name}: a new parameter needs a rule here and in bc2"
    )
    return whole


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("head", ["language", "scalar"])
def test_every_parameter_of_a_model_is_cut_as_by_hand(head: str, ranks: int) -> None:
    for name, whole in numbered(CONFIG.model_copy(update={"head": head})).items():
        for rank in range(ranks):
            part = shard_of(name, tuple(whole.shape), rank, ranks)
            expected = by_hand(name, whole, rank, ranks)
            assert torch.equal(part.of(whole), expected), (name, rank)
            assert part.shard_shape == tuple(expected.shape)
            assert part.shape == tuple(whole.shape)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "shape",
    [
        {"num_kv_heads": 4, "qkv_bias": True},
        {"num_kv_heads": 4, "num_heads": 8, "qk_norm": True},
    ],
)
def test_queries_keys_and_values_are_cut_by_their_heads(shape: dict[str, Any], ranks: int) -> None:
    config = CONFIG.model_copy(update={"head_dim": CHANNELS, **shape})
    for name, whole in numbered(config).items():
        for rank in range(ranks):
            part = shard_of(
                name, tuple(whole.shape), rank, ranks, heads_per_key=config.heads_per_key
            )
            expected = by_hand(name, whole, rank, ranks, key_heads=4)
            assert torch.equal(part.of(whole), expected), (name, rank)
            assert part.shard_shape == tuple(expected.shape)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_ranks_parts_together_are_the_whole(ranks: int) -> None:
    for name, whole in numbered().items():
        every = [shard_of(name, tuple(whole.shape), rank, ranks) for rank in range(ranks)]
        if every[0].dim is None:
            assert set(every) == {TensorShard(tuple(whole.shape))}
            continue
        dim, pieces = every[0].dim, len(every[0].runs)
        # Piece by piece: thirds of W_pack, of each rank in turn.
        cut = [part.of(whole).chunk(pieces, dim) for part in every]
        joined = torch.cat([torch.cat(piece, dim) for piece in zip(*cut, strict=True)], dim)
        assert torch.equal(joined, whole), name
        taken = sorted(run for part in every for run in part.runs)
        assert [first for first, _ in taken] == [0, *(end for _, end in taken[:-1])]
        assert taken[-1][1] == whole.shape[dim]


def test_alone_a_rank_has_everything_and_no_copy() -> None:
    for name, whole in numbered().items():
        part = shard_of(name, tuple(whole.shape), 0, 1)
        assert part.dim is None
        assert part.of(whole) is whole
