"""The estimate of memory against what autograd really keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch

from bc2.data.loader import pack
from bc2.model import transformer
from bc2.model.adapters import is_adapters
from bc2.model.alibi_channels import AlibiChannels, alibi_channels
from bc2.model.lora import add_lora
from bc2.model.lora_config import LoraConfig
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.parallel.build import parts
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.algorithm import ModelRole
from bc2.train.device import DTYPES
from bc2.train.engines.local import LocalEngine
from bc2.train.engines.trainable import freeze
from bc2.train.memory.estimate import estimate
from bc2.train.memory.run_memory import adapter_count, saved_bytes, trained_names
from bc2.train.memory.shape import TrainingShape
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.precision import Precision
from bc2.train.pretrain.next_token import NextToken

SEQUENCES, LENGTH = 4, 64


def shape(position: str, /, **head: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_layers": 4,
            "num_heads": 4, "context_length": LENGTH, "position": position,
            **head,
        }
    )  # fmt: skip


def kept_bytes(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a forward pass keeps: saved tensors and positions' tables, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    kept: list[torch.Tensor] = []
    plain = transformer.rotary_table

    def table(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        made = plain(*args)  # type: ignore[arg-type]
        kept.extend(made)
        return made

    monkeypatch.setattr(transformer, "rotary_table", table)

    def made_channels(*args: Any) -> AlibiChannels:
        made = alibi_channels(*args)
        if engine.model.model.checkpointing:  # else nothing has them after the forward pass
            kept.extend((made.query, made.key))
        return made

    monkeypatch.setattr("bc2.model.attention.alibi_channels", made_channels)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    tokens = torch.randint(512, (SEQUENCES * LENGTH,))
    bounds = torch.arange(0, len(tokens) + 1, LENGTH, dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        engine.model(tokens, bounds, LENGTH)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in storages.items() if place not in weights)


@pytest.mark.parametrize("checkpointing", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_activations_are_what_autograd_keeps(
    position: str, precision: Precision, checkpointing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shape(position)
    engine = LocalEngine(
        Transformer(config), AdamWConfig(), precision=precision, checkpointing=checkpointing
    )
    expected = estimate(TrainingShape(config, SEQUENCES, LENGTH, precision, checkpointing))
    assert expected.activations == pytest.approx(kept_bytes(engine, monkeypatch), rel=0.1)


#: What other families have.
FAMILIES: list[dict[str, Any]] = [
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "head_dim": 64},
    {"head_dim": 48},
    {"num_kv_heads": 2, "position": "alibi"},
    {"num_kv_heads": 2, "qkv_bias": True},
    {"sliding_window": 16},
    {"sliding_window": LENGTH, "num_kv_heads": 2},
    {"tied": True},
    {"tied": True, "head": "scalar"},
    {"qk_norm": True},
    {"num_kv_heads": 1, "qk_norm": True},
    {"num_kv_heads": 2, "qk_norm": True, "position": "alibi"},
]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_activations_of_other_families(
    family: dict[str, Any], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shape("rope", **family)
    engine = LocalEngine(Transformer(config), AdamWConfig(), precision=precision)
    expected = estimate(TrainingShape(config, SEQUENCES, LENGTH, precision, 0))
    assert expected.activations == pytest.approx(kept_bytes(engine, monkeypatch), rel=0.02)


HEADS: list[dict[str, Any]] = [{}, {"head": "scalar"}, {"head": "classes", "num_classes": 3}]


@pytest.mark.parametrize("head", [*HEADS, *FAMILIES], ids=str)
def test_weights_and_moments_are_the_engines(head: dict[str, Any]) -> None:
    config = shape("rope", **head)
    engine = LocalEngine(Transformer(config), AdamWConfig(), precision="bf16")
    tensors = [*engine.model.parameters(), *engine.master]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    expected = estimate(TrainingShape(config, SEQUENCES, LENGTH, "bf16", 0))
    assert expected.weights + expected.master == sum(storages.values())
    assert expected.moments == 2 * sum(4 * master.numel() for master in engine.master)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("kept", ["model.embed_tokens.", "lm_head.", "score.", "model.layers."])
def test_a_frozen_parameter_is_its_weight_alone(
    head: dict[str, Any], kept: str, precision: Precision
) -> None:
    config, model = shape("rope", **head), Transformer(shape("rope", **head))
    trained = frozenset(name for name, _ in model.named_parameters() if not name.startswith(kept))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    engine = LocalEngine(model, AdamWConfig(), precision=precision)
    tensors = [*engine.model.parameters(), *engine.trained.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    made = TrainingShape(config, SEQUENCES, LENGTH, precision, 0, trained=trained)
    expected = estimate(made)
    assert expected.weights + expected.master == sum(storages.values())
    count = sum(parameter.numel() for parameter in engine.trained.values())
    assert (expected.moments, expected.gradients) == (8 * count, 4 * count)
    everything = replace(made, trained=None)
    assert replace(made, trained=frozenset(engine.parts)).trained_params == everything.params
    assert expected.total < estimate(everything).total or trained == engine.parts.keys()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("norm_head", [True, False])
def test_a_frozen_head_has_no_gradient(norm_head: bool, precision: Precision) -> None:
    config = shape("rope", norm_head=norm_head, vocab_size=4096)
    model = Transformer(config)
    model.lm_head.weight.requires_grad_(False)
    engine = LocalEngine(model, AdamWConfig(), precision=precision)
    dtype = engine.model.model.norm.weight.dtype
    hidden = torch.randn(SEQUENCES * LENGTH, config.hidden_size).to(dtype).requires_grad_()
    labels = torch.randint(4096, (SEQUENCES * LENGTH,))

    def step() -> None:
        loss = engine.model.language_head.loss(hidden, labels, z_weight=0.0)
        loss.loss_sum.backward()  # type: ignore[no-untyped-call]

    step()
    hidden.grad = None
    made = TrainingShape(config, SEQUENCES, LENGTH, precision, 0, trained=frozenset(engine.trained))
    peak = peak_of(step)
    assert estimate(made).head == pytest.approx(peak, rel=0.05)
    assert estimate(replace(made, trained=None)).head > 1.1 * peak


def peak_of(step: Callable[[], object]) -> int:
    """The most bytes that torch held at once of what `step` allocated."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_heads_gradient_waits_for_the_embeddings(tied: bool, micro_batches: int) -> None:
    """Of a model that is mostly embedding and head: what a step's passes hold of gradients."""
    config = shape(
        "rope", tied=tied, vocab_size=8192, hidden_size=256, intermediate_size=128, num_layers=1,
        norm_head=False,
    )  # fmt: skip
    engine = LocalEngine(Transformer(config), AdamWConfig(), precision="fp32")
    rows = np.random.default_rng(0).integers(0, 500, (micro_batches, LENGTH + 1))
    ids = np.zeros(1, np.int64)
    batches = [pack(rows[i : i + 1], ids, -1) for i in range(micro_batches)]

    def step() -> None:
        engine.accumulate(batches, NextToken(0.0), divisor=LENGTH)

    step()
    engine.discard()
    found = estimate(TrainingShape(config, 1, LENGTH, "fp32", 0, accumulated=micro_batches > 1))
    phases = {name: sum(held.values()) for name, held in found.phases.items() if name != "update"}
    held = max(phases.values()) - sum(found.lasting.values())
    assert held == pytest.approx(peak_of(step), rel=0.07)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("head", HEADS[1:], ids=str)
def test_a_head_of_values_holds_what_torch_allocates(
    head: dict[str, Any], precision: Precision
) -> None:
    config = shape("rope", **head)
    engine = LocalEngine(Transformer(config), AdamWConfig(), precision=precision)
    dtype = engine.model.model.norm.weight.dtype
    before = torch.randn(SEQUENCES * LENGTH, config.hidden_size).to(dtype).requires_grad_()

    def step() -> None:
        values = engine.model.values(before.clone())  # hidden states, which only the head has
        values.backward(torch.ones_like(values))

    step()
    engine.discard()
    before.grad = None
    found = estimate(TrainingShape(config, SEQUENCES, LENGTH, precision, 0))
    assert found.head == pytest.approx(peak_of(step), rel=0.05)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("head", [*HEADS, {"tied": True}, {"qk_norm": True}], ids=str)
def test_parameters_of_a_rank_are_those_of_its_parts(head: dict[str, Any], tensor: int) -> None:
    config = shape("rope", **head)
    layout = ParallelConfig(tensor=tensor)
    made = TrainingShape(config, 1, LENGTH, "bf16", 0, parallel=layout, world=tensor)
    ranks = Mesh(tensor=Group(tuple(range(tensor)), 0))
    sizes = {name: prod(part.shard_shape) for name, part in parts(config, ranks).items()}
    assert made.params == sum(sizes.values())
    assert made.head == sizes[f"{config.head_module}.weight"]
    assert made.trained_head == (0 if config.tied else made.head)


def test_a_scalar_head_takes_no_logits_and_no_matrix() -> None:
    made = TrainingShape(shape("rope"), SEQUENCES, LENGTH, "bf16", 0)
    language, scalar = (estimate(replace(made, model=shape("rope", **head))) for head in HEADS[:2])
    matrix = 511 * 128  # rows that it has not
    assert language.weights - scalar.weights == 4 * matrix
    assert language.moments - scalar.moments == 8 * matrix
    assert language.gradients - scalar.gradients == 4 * matrix
    assert language.activations == scalar.activations
    assert scalar.head < language.head / 3


def test_what_changes_the_total() -> None:
    config = shape("rope")

    def total(micro_batch: int = 64, checkpointing: int = 0, accumulated: bool = False) -> int:
        made = TrainingShape(config, micro_batch, LENGTH, "bf16", checkpointing)
        return estimate(replace(made, accumulated=accumulated)).total

    assert total(128) > total(64) > total(1)
    assert total(checkpointing=1) < total(checkpointing=0)
    assert total(accumulated=True) > total()
    # a segment longer than the model is the model
    assert total(checkpointing=4) == total(checkpointing=99)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 2}], ids=str)
def test_adapters_of_low_rank_are_those_of_the_ranks_parts(
    more: dict[str, Any], tensor: int
) -> None:
    config, add = shape("rope", **more), add_lora(LoraConfig(rank=4))
    role = ModelRole("model", config, trainable=is_adapters, adapters=add, alone=True)
    layout = ParallelConfig(tensor=tensor)
    made = TrainingShape(
        config, 1, LENGTH, "bf16", 0, parallel=layout, world=tensor, trained=trained_names(role),
        adapters=adapter_count(role), cut_adapters=adapter_count(role, cut=True),
    )  # fmt: skip
    ranks = Mesh(tensor=Group(tuple(range(tensor)), 0))
    sizes = {name: prod(part.shard_shape) for name, part in parts(config, ranks, add).items()}
    assert made.params == sum(sizes.values())
    trained = sum(size for name, size in sizes.items() if is_adapters(name))
    assert made.trained_params == trained
    found = estimate(made)
    # 2 bytes of each, and of what is trained a master, two moments and a gradient.
    assert found.weights == 2 * made.params
    assert (found.master, found.moments, found.gradients) == (4 * trained, 8 * trained, 4 * trained)
    assert saved_bytes(role, AdamWConfig()) == 12 * adapter_count(role)


@pytest.mark.parametrize("checkpointing", [0, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_with_adapters_no_more_is_kept_than_is_counted(
    precision: Precision, checkpointing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, add = shape("rope"), add_lora(LoraConfig(rank=4))
    model = Transformer(config)
    add(model)
    freeze(model, set(filter(is_adapters, dict(model.named_parameters()))), DTYPES[precision])
    engine = LocalEngine(
        model, AdamWConfig(), precision=precision, checkpointing=checkpointing, adapters=add
    )
    counted = estimate(
        TrainingShape(config, SEQUENCES, LENGTH, precision, checkpointing, trained=frozenset(),
                      adapters=1)
    ).activations  # fmt: skip
    assert 0.7 * counted < kept_bytes(engine, monkeypatch) <= counted
