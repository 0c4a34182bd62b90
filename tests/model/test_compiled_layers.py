"""Compiled layers: which graphs there are, and that other documents need no others."""

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs

from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

TOTAL = 192
DOCUMENTS = [[192], [64, 64, 64], [100, 92], [1, 190, 1], [7, 80, 64, 41], [96, 96], [1] * 192]


#: All that other families differ by.
FAMILY = {
    "num_kv_heads": 1, "head_dim": 12, "qkv_bias": True, "qk_norm": True, "tied": True,
    "sliding_window": 50, "rope_scaling": {"kind": "linear", "factor": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("position", ["rope", "alibi", "family"])
@pytest.mark.parametrize("checkpointing", [0, 1])
def test_other_documents_need_no_other_graphs(position, checkpointing):
    """Neither their number nor the longest one is part of a graph."""
    more = FAMILY if position == "family" else {"position": position}
    torch._dynamo.reset()
    config = ModelConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=40,
        num_layers=3,
        num_heads=2,
        context_length=TOTAL,
        **more,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    model.model.checkpointing = checkpointing
    recorded = EagerAndRecordGraphs()
    for layer in model.model.layers:
        layer.compile(backend=recorded)
    counts = []
    for seed, lengths in enumerate(DOCUMENTS):
        tokens = torch.randint(61, (TOTAL,), generator=torch.Generator().manual_seed(seed))
        bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        model(tokens, bounds, max(lengths)).sum().backward()
        counts.append(len(recorded.graphs))
    assert len(set(counts)) == 1, "graphs after each step"
    # Norm; Q, K and V with the rotary embedding; what follows attention; the feed-forward.
    assert counts[0] == 4
    if position != "alibi":
        (projection,) = [graph for graph in recorded.graphs if "flip" in graph.code]
        assert "linear" in projection.code
    torch._dynamo.reset()
