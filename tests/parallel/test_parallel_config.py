"""What layouts are refused, and what the message offers; and checkpointing's "auto"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bc2.data.loader import Batch, pack
from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.parallel.parallel_config import ParallelConfig, check_layout, even_tensor
from bc2.train.engines.local import LocalEngine
from bc2.train.memory.estimate import estimate, least_segment, settle_checkpointing
from bc2.train.memory.shape import TrainingShape
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.next_token import NextToken
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.run_config import check_batches

Spread = Callable[..., list[list[list[float]]]]


def model(**changes: Any) -> ModelConfig:
    shape = {
        "vocab_size": 120, "hidden_size": 48, "intermediate_size": 72, "num_layers": 2,
        "num_heads": 12, "context_length": 64,
    }  # fmt: skip
    return ModelConfig(**{**shape, **changes})


def training(**changes: Any) -> PretrainConfig:
    settings = {"length": "10 steps", "batch_tokens": 12 * 64, "micro_batch": 2}
    return PretrainConfig(**{**settings, "sequence_length": 64, **changes})


# -- layouts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"order": ("tensor", "data", "data")}, "order must name each of tensor, sequence, data"),
        ({"zero_group": 2}, "zero_group needs zero = 3"),
        ({"zero_group": 2, "zero": 3, "tensor": 2}, "zero_group needs tensor = 1"),
        ({"offload_optimizer": True}, "offload_optimizer needs zero = 1, 2 or 3"),
        ({"tensor": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ParallelConfig(**settings)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], int, str, str]] = [
    (
        {"tensor": 2, "sequence": 3}, {}, 8,
        "8 ranks cannot be parted into tensor x sequence = 2 x 3",
        "start a multiple of 6 ranks, or set parallel.tensor and .sequence to divisors of 8",
    ),
    (
        {"tensor": 5}, {}, 5, "parallel.tensor = 5 does not divide model.num_heads = 12",
        "parallel.tensor may be 1, 2, 3, 4, 6, 12",
    ),
    (
        {"tensor": 4}, {"intermediate_size": 70}, 4,
        "parallel.tensor = 4 does not divide model.intermediate_size = 70",
        "parallel.tensor may be 1, 2",
    ),
    (
        {"tensor": 3}, {"vocab_size": 121}, 3,
        "parallel.tensor = 3 does not divide model.vocab_size = 121",
        "parallel.tensor may be 1",
    ),
    (
        {"tensor": 2, "sequence": 4}, {}, 8,
        "parallel.sequence = 4 does not divide heads of a tensor rank = 6",
        "parallel.sequence may be 1, 2, 3, 6",
    ),
    (
        {"tensor": 6}, {"num_kv_heads": 4}, 6,
        "parallel.tensor = 6 does not divide model.num_kv_heads = 4",
        "parallel.tensor may be 1, 2, 4",
    ),
    (
        {"tensor": 2, "sequence": 3}, {"num_kv_heads": 4}, 6,
        "parallel.sequence = 3 does not divide key heads of a tensor rank = 2",
        "parallel.sequence may be 1, 2",
    ),
    (
        {"zero": 3, "zero_group": 4}, {}, 6,
        "parallel.zero_group = 4 does not divide the 6 ranks that share a model's states",
        "parallel.zero_group may be 2, 3, 6",
    ),
    (
        {"zero": 3, "zero_group": 4}, {}, 1,
        "parallel.zero_group = 4 does not divide the 1 ranks that share a model's states",
        "leave parallel.zero_group out",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parallel", "shape", "world", "what", "todo"), REFUSED)
def test_what_does_not_divide_is_refused_and_what_would_is_offered(
    parallel: dict[str, Any], shape: dict[str, Any], world: int, what: str, todo: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_layout(ParallelConfig(**parallel), model(**shape), world, "here")
    assert (caught.value.what, caught.value.todo, caught.value.where) == (what, todo, "here")


@given(
    tensor=st.integers(1, 6), sequence=st.integers(1, 6), world=st.integers(1, 24),
    heads=st.sampled_from([1, 6, 12]), vocab=st.sampled_from([120, 121]),
)  # fmt: skip
def test_a_layout_is_taken_exactly_if_everything_divides(
    tensor: int, sequence: int, world: int, heads: int, vocab: int
) -> None:
    shape = model(num_heads=heads, vocab_size=vocab)
    divides = (
        world % (tensor * sequence) == heads % (tensor * sequence) == 0
        and vocab % tensor == shape.intermediate_size % tensor == 0
    )
    parallel = ParallelConfig(tensor=tensor, sequence=sequence)
    if divides:
        check_layout(parallel, shape, world, "here")
        assert tensor in even_tensor(shape, 6)
        return
    with pytest.raises(RecipeError) as caught:
        check_layout(parallel, shape, world, "here")
    assert caught.value.todo


def test_tensor_sizes_that_fit_a_model() -> None:
    assert even_tensor(model(), 100) == [1, 2, 3, 4, 6, 12]
    assert even_tensor(model(vocab_size=121), 100) == [1]
    assert even_tensor(model(), 3) == [1, 2, 3]
    assert even_tensor(model(num_kv_heads=4), 100) == [1, 2, 4]


# -- batches ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "world", "settings", "what", "todo"),
    [
        (
            {"sequence": 3}, 3, {}, "does not divide pretrain.sequence_length = 64",
            "parallel.sequence may be 1, 2, 4, 8, 16, 32, 64",
        ),
        (
            {"tensor": 2}, 8, {}, "12 sequences is no whole number of micro-batches of 2 on 4",
            "pretrain.micro_batch may be 1, 3",
        ),
        (
            {}, 5, {}, "12 sequences is no whole number of micro-batches of 2 on 5",
            "the data-parallel ranks may be 1, 2, 3, 4, 6, 12",
        ),
        ({}, 2, {"micro_batch": "auto"}, '"auto" is tried on one rank alone', "set a number"),
    ],
)  # fmt: skip
def test_a_step_that_ranks_cannot_share_is_refused(
    parallel: dict[str, Any], world: int, settings: dict[str, Any], what: str, todo: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_batches(training(**settings), ParallelConfig(**parallel), world)
    assert what in caught.value.what
    assert caught.value.todo is not None
    assert todo in caught.value.todo


def test_a_step_that_ranks_share_evenly_is_taken() -> None:
    check_batches(training(), ParallelConfig(), 6)
    check_batches(training(micro_batch="auto"), ParallelConfig(), 1)
    check_batches(training(), ParallelConfig(tensor=2, sequence=4), 24)


# -- activation checkpointing -------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 7, "auto"])
def test_checkpointing_is_a_number_or_auto(value: int | str) -> None:
    assert training(activation_checkpointing=value).activation_checkpointing == value


@pytest.mark.parametrize("value", [-1, 1.0, True, "all", None])
def test_checkpointing_is_nothing_else(value: object) -> None:
    with pytest.raises(ValidationError, match='a number of layers, 0 for none, or "auto"'):
        training(activation_checkpointing=value)


@given(
    layers=st.integers(1, 200), position=st.sampled_from(["rope", "alibi"]),
    precision=st.sampled_from(["bf16", "fp32"]), device=st.sampled_from(["cpu", "cuda"]),
)  # fmt: skip
def test_auto_takes_the_least_activations_of_all_segments(
    layers: int, position: Any, precision: Any, device: str
) -> None:
    """By the estimate that is checked against autograd in `tests/train/memory/test_estimate.py`."""
    deep = model(num_layers=layers, position=position)
    shape = TrainingShape(deep, 2, 64, precision, 0, device=device)

    def activations(segment: int) -> int:
        found = estimate(replace(shape, checkpointing=segment))
        return found.activations + found.recomputed

    chosen = least_segment(shape)
    best = min(map(activations, range(1, layers + 1)))
    assert activations(chosen) == best
    # n, in inputs of a layer: √(layers / n) is the same but for whole numbers.
    one_input = 2 * 64 * 48 * (2 if precision == "bf16" else 4)
    whole = estimate(replace(shape, checkpointing=layers))
    n = whole.recomputed / layers / one_input
    assert abs(chosen - (layers / n) ** 0.5) < 1.5


def test_auto_grows_with_depth_and_with_ranks_that_share_a_layer() -> None:
    def auto(layers: int, tensor: int = 1) -> int:
        parallel = ParallelConfig(tensor=tensor)
        deep = model(num_layers=layers)
        shape = TrainingShape(deep, 1, 64, "bf16", 0, "cuda", parallel=parallel, world=tensor)
        return least_segment(shape)

    assert auto(1) == auto(24) == 1
    assert 1 < auto(80) < auto(400)
    assert auto(80) < auto(80, tensor=8)


def test_auto_is_settled_once_and_a_number_stays() -> None:
    deep = model(num_layers=80)
    config = training(activation_checkpointing="auto", device="cpu", precision="fp32")
    with pytest.raises(AssertionError, match="settle_checkpointing"):
        assert config.segment_layers
    settled = settle_checkpointing(deep, config)
    assert settled.segment_layers == least_segment(TrainingShape(deep, 1, 64, "fp32", 0)) == 2
    assert settle_checkpointing(deep, settled) is settled
    assert settled.keyed() == config.keyed() == training(device="cpu", precision="fp32").keyed()


def batch(seed: int) -> Batch:
    drawn = np.random.default_rng(seed).integers(0, 120, (3, 65))
    return pack(drawn, np.zeros(3, dtype=np.int64), eos_id=2)


def trained(segment: int, position: Any) -> tuple[list[float], list[torch.Tensor]]:
    made = Transformer(model(num_layers=5, position=position))
    made.init_weights(torch.Generator().manual_seed(0))
    engine = LocalEngine(made, AdamWConfig(), checkpointing=segment)
    seen: list[float] = []
    for step in range(3):
        data = [batch(2 * step), batch(2 * step + 1)]
        tokens = sum(one.num_labels for one in data)
        seen.append(engine.accumulate(data, NextToken(2e-4), divisor=tokens)["loss"])
        seen.append(engine.gradient_norm())
        engine.update(1e-2, norm=seen[-1], clip_norm=0.5)
    engine.accumulate([batch(99)], NextToken(2e-4), divisor=100)
    grads = [p.grad.clone() for p in made.parameters() if p.grad is not None]
    return seen, [*grads, *(p.detach().clone() for p in made.parameters())]


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_segments_change_no_bit(position: str) -> None:
    """Losses, norms, gradients and weights after three steps, in fp32 on one rank."""
    seen, tensors = trained(0, position)
    assert len(tensors) == 2 * len(list(Transformer(model(num_layers=5)).parameters()))
    for segment in (1, 2, 3, 5, 9):
        again, others = trained(segment, position)
        assert again == seen
        assert all(map(torch.equal, tensors, others))


def test_segments_change_no_bit_where_two_ranks_share_a_model(spread: Spread) -> None:
    """The collectives of a layer run once more, in the backward pass, on both alike."""
    run = {"parallel": {"tensor": 2}, "steps": 5}
    kept, *others = spread(2, [{**run, "checkpointing": segment} for segment in (0, 1, 2)])
    assert len(kept) == 5
    assert all(other == kept for other in others)


@pytest.mark.parametrize(
    ("settings", "world", "zero"),
    [
        ({"zero": 3}, 1, 0),
        ({"zero": 2, "tensor": 4}, 4, 0),
        ({"zero": 2, "tensor": 2}, 4, 2),
        ({"zero": 1, "sequence": 2}, 2, 1),
        ({"zero": 1, "offload_optimizer": True}, 1, 1),
        ({"zero": 3, "zero_group": 2}, 1, 0),
    ],
)
def test_one_replica_shares_its_states_with_nobody(
    settings: dict[str, Any], world: int, zero: int
) -> None:
    found = ParallelConfig(**settings).on(world)
    assert found.zero == zero
    assert found.tensor == settings.get("tensor", 1)
