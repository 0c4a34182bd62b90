"""Adapters of low rank: what they say, where they stand, what they begin as, how they are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_adapters import LORA, drawn
from pydantic import ValidationError

from bc2.model.adapters import is_adapters
from bc2.model.lora import add_lora, merge
from bc2.model.lora_config import TARGETS, LoraConfig
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Linear, Transformer
from bc2.parallel.build import InitialWeights, parts
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.sharding import TensorShard, shard_of

#: Four heads of queries, two of keys and values.
CONFIG = ModelConfig(
    vocab_size=24, hidden_size=16, intermediate_size=20, num_layers=2, num_heads=4, num_kv_heads=2,
    context_length=8,
)  # fmt: skip


def adapted(lora: LoraConfig = LORA) -> Transformer:
    model = Transformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(1))
    add_lora(lora)(model)
    model.load_state_dict(drawn(CONFIG, lora), strict=False)
    return model.double()


def places(model: Transformer) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module.adapter is not None
    ]


@torch.no_grad()
def hidden(model: Transformer) -> torch.Tensor:
    tokens = torch.arange(8) * 3
    out: torch.Tensor = model(tokens, torch.tensor([0, 5, 8], dtype=torch.int32), 5)
    return out


@pytest.mark.parametrize(("rank", "alpha"), [(1, 32.0), (3, 6.0), (4, 0.5)])
@torch.no_grad()
def test_it_adds_alpha_by_rank_times_b_a_x(rank: int, alpha: float) -> None:
    model = adapted(LoraConfig(rank=rank, alpha=alpha))
    x = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    linear = model.get_submodule("model.layers.1.self_attn.W_pack")
    assert isinstance(linear, Linear)
    assert linear.adapter is not None
    a, b = (linear.adapter.get_parameter(name) for name in ("lora_A", "lora_B"))
    expected = x @ (linear.weight + alpha / rank * b @ a).T
    torch.testing.assert_close(linear(x), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("targets", [TARGETS, ("W_pack",), ("up_proj", "o_proj")])
def test_it_stands_beside_the_matrices_that_are_named(targets: tuple[Any, ...]) -> None:
    found = places(adapted(LoraConfig(targets=targets)))
    assert {name.rpartition(".")[2] for name in found} == {*targets}
    assert len(found) == len(targets) * CONFIG.num_layers


@pytest.mark.parametrize("targets", [(), ("W_pack", "W_pack"), ("q_proj",)])
def test_other_targets_are_refused(targets: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError):
        LoraConfig(targets=targets)


def test_the_order_of_targets_says_nothing() -> None:
    one, other = (LoraConfig(targets=each) for each in (("o_proj", "W_pack"), ("W_pack", "o_proj")))
    assert one == other
    assert add_lora(one) == add_lora(other) != add_lora(LoraConfig(alpha=8, targets=one.targets))


def test_it_begins_as_the_base_with_a_in_pefts_range() -> None:
    add = add_lora(LoraConfig(rank=64))
    weights = InitialWeights(CONFIG, 7, add)
    for name, part in parts(CONFIG, Mesh(), add).items():
        if not is_adapters(name):
            continue
        read = weights.read(name, part, 0, torch.Size(part.shape).numel())
        if name.endswith("lora_B"):
            assert not read.any()
        else:
            bound = part.shape[1] ** -0.5
            assert 0.95 * bound < read.abs().max() <= bound
            assert read.std() == pytest.approx(bound / 3**0.5, rel=0.1)


@torch.no_grad()
def test_merged_it_says_the_same_without_adapters() -> None:
    model = adapted().float()
    before = hidden(model)
    base = hidden(_without(model))
    merge(model)
    assert not places(model)
    torch.testing.assert_close(hidden(model), before, rtol=1e-5, atol=1e-5)
    assert (before - base).abs().max() > 0.1


def _without(model: Transformer) -> Transformer:
    plain = Transformer(model.config)
    kept = {name: one for name, one in model.state_dict().items() if not is_adapters(name)}
    plain.load_state_dict(kept)
    return plain


@pytest.mark.parametrize("ranks", [2, 4])
def test_one_factor_is_cut_as_the_weight_and_the_other_is_whole(ranks: int) -> None:
    config = CONFIG.model_copy(update={"num_heads": 8, "num_kv_heads": 4})
    whole = parts(config, Mesh(), add_lora(LORA))
    for rank in range(ranks):
        mesh = Mesh(tensor=Group(tuple(range(ranks)), rank))
        cut = parts(config, mesh, add_lora(LORA))
        for name in filter(is_adapters, whole):
            weight = cut[name[: name.index(".adapter.")] + ".weight"]
            by_inputs = weight.dim == 1
            if name.endswith("lora_A") == by_inputs:
                assert (cut[name].dim, cut[name].runs) == (weight.dim, weight.runs), name
            else:
                assert cut[name] == TensorShard(whole[name].shape), name


def test_an_adapter_of_another_kind_is_whole() -> None:
    for name in ("x.o_proj.adapter.A", "x.W_pack.adapter.down.weight"):
        assert shard_of(name, (4, 8), 0, 2) == TensorShard((4, 8))
