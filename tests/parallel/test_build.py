"""Initial weights are those that one device draws, whatever a rank reads of them."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.parallel import build
from bc2.parallel.build import InitialWeights
from bc2.parallel.sharding import TensorShard

CONFIG = ModelConfig(
    vocab_size=24, hidden_size=16, intermediate_size=20, num_layers=2, num_heads=2,
    context_length=8,
)  # fmt: skip


@pytest.mark.parametrize("wanted", [0, 1, 2, 5, 100])
def test_what_is_not_wanted_changes_nothing_and_is_drawn_only_before_what_is(wanted: int) -> None:
    """A rank wants a piece of every third tensor, up to some number of them."""
    model = Transformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(7))
    named = list(model.named_parameters())
    drawn = InitialWeights(CONFIG, 7)
    last = max((i for i in range(len(named)) if i % 3 == 0 and i < 3 * wanted), default=-1)
    with mock.patch.object(build, "draw_weight", wraps=build.draw_weight) as draw:
        for number, (name, parameter) in enumerate(named):
            count = 5 if number % 3 == 0 and number < 3 * wanted else 0
            got = drawn.read(name, TensorShard(tuple(parameter.shape)), 3, count)
            assert torch.equal(got, parameter.detach().flatten()[3 : 3 + count]), name
    assert draw.call_count == last + 1
