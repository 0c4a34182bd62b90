"""FLOPs of a step: rows of other lengths, what the stream computed, models that steps leave out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bc2.data.loader import Batch, pack
from bc2.model.adapters import Adapter
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.train.algorithm import ModelRole
from bc2.train.schedule import Speed
from bc2.train.step_flops import flops_per_token, forward_flops
from bc2.train.stream import StepData

MODEL = ModelConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)


class Low(Adapter):
    """Two matrices of rank 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(32, 4, bias=False), nn.Linear(4, 64, bias=False)

    def draw(self, name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        raise NotImplementedError


def rows(count: int, length: int) -> Batch:
    return pack(np.ones((count, length + 1), np.int64), np.zeros(count, np.int64), eos_id=0)


def speed(roles: list[ModelRole]) -> Speed:
    matmul, attended = (flops_per_token(roles, row) for row in (0, 1))
    return Speed(matmul, 1e12, lambda flops: None, flops_per_pair=attended - matmul)


def test_ragged_micro_batches_count_what_each_computed() -> None:
    """By hand: 6 FLOPs a parameter and token, and 12 L D for each token of its row."""
    step = StepData(0, 5, [rows(2, 16), rows(3, 8)])
    matmul = 6 * (2 * (4 * 32**2 + 3 * 32 * 64) + 64 * 32)
    tokens, pairs = 2 * 16 + 3 * 8, 2 * 16**2 + 3 * 8**2
    assert (step.computed, step.pairs) == (tokens, pairs)
    assert speed([ModelRole("model", MODEL)]).flops(step) == matmul * tokens + 12 * 2 * 32 * pairs


def test_full_rows_count_as_ever() -> None:
    step = StepData(0, 4, [rows(2, 16)] * 2)
    assert speed([ModelRole("model", MODEL)]).flops(step) == MODEL.flops_per_token(16) * 64


def test_steps_of_other_sizes_at_one_pace_have_one_mfu() -> None:
    one = speed([ModelRole("model", MODEL)])
    many, few = StepData(0, 8, [rows(8, 16)]), StepData(8, 8, [rows(2, 16)])
    first, second = (one.of(s, x.computed, one.flops(x)) for s, x in ((0.4, many), (0.1, few)))
    assert first == pytest.approx(second)
    assert first["tokens_per_s"] == pytest.approx(320)


def test_a_frozen_model_counts_its_forward_pass_if_steps_run_it() -> None:
    frozen = ModelRole("reference", MODEL, trained=False)
    left_out = ModelRole("judge", MODEL, trained=False, in_steps=False)
    trained = ModelRole("policy", MODEL)
    assert 3 * flops_per_token([trained, frozen, left_out], 8) == 4 * MODEL.flops_per_token(8)


def test_what_the_stream_computed_counts_and_makes_no_tokens() -> None:
    batches = [rows(2, 16)]
    written = forward_flops(MODEL, tokens=2 * 16, row=16)
    assert 3 * written == 32 * MODEL.flops_per_token(16)
    one = speed([ModelRole("policy", MODEL)])
    plain, further = StepData(0, 2, batches), StepData(0, 2, batches, further_flops=written)
    assert one.flops(further) == one.flops(plain) * 4 / 3
    assert further.computed == plain.computed


def test_what_is_frozen_in_a_trained_model_has_no_gradient_of_its_weight() -> None:
    """Two of the six FLOPs; an embedding has none anyway, nor has a norm."""
    head = ModelRole("policy", MODEL, trainable="lm_head.weight".__eq__)
    layers = 2 * (4 * 32**2 + 3 * 32 * 64)
    assert flops_per_token([head], 8) == MODEL.flops_per_token(8) - 2 * layers


def test_adapters_are_products_too() -> None:
    def beside_up_proj(model: Transformer) -> None:
        for layer in model.model.layers:
            layer.mlp.up_proj.adapter = Low()  # type: ignore[union-attr]

    adapted = ModelRole("policy", MODEL, adapters=beside_up_proj)
    matrices = 2 * 4 * (32 + 64)
    assert flops_per_token([adapted], 8) == MODEL.flops_per_token(8) + 6 * matrices
