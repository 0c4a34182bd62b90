"""Adapters beside a layer's weight: what they see, how they are named, saved and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bc2.errors import IntegrityError, RecipeError
from bc2.model.adapters import Adapter, draw_adapter, is_adapters
from bc2.model.model_config import ModelConfig
from bc2.model.store import check_names, check_shapes, expected_shapes, save_model
from bc2.model.transformer import Linear, Transformer
from bc2.parallel.build import InitialWeights, StartWeights, build_model, parts
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import HeldTensors, Stored
from bc2.registry import Draft, Registry, stage_key
from bc2.train.engines.local import LocalEngine
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.snapshot import ModelState, Snapshot, TrainerState, random_state

CONFIG = ModelConfig(
    vocab_size=24, hidden_size=16, intermediate_size=20, num_layers=2, num_heads=2,
    context_length=8,
)  # fmt: skip
PLACES = {
    "model.layers.0.self_attn.W_pack": (16, 48),
    "model.layers.0.self_attn.o_proj": (16, 16),
    "model.layers.1.mlp.gate_proj": (16, 20),
    "model.layers.1.mlp.down_proj": (20, 16),
}


class Shift(Adapter):
    """x Wᵀ, times a number: as large as the weight, so that the two can be added."""

    def __init__(self, linear: Linear):
        super().__init__()
        self.inner = nn.Linear(linear.in_features, linear.out_features, bias=False)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * self.scale
        return out

    def draw(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        if name == "scale":
            return torch.full(shape, 0.5)
        return torch.empty(shape).normal_(0.0, 0.1, generator=generator)


def add(model: Transformer) -> None:
    for place in PLACES:
        linear = model.get_submodule(place)
        assert isinstance(linear, Linear)
        linear.adapter = Shift(linear)


def read_all(source: InitialWeights | StartWeights) -> dict[str, Tensor]:
    return {
        name: source.read(name, part, 0, torch.Size(part.shape).numel()).view(part.shape)
        for name, part in parts(CONFIG, Mesh(), add).items()
    }


def filled(tensors: dict[str, Tensor]) -> Transformer:
    model = build_model(CONFIG, Mesh(), add)
    model.load_state_dict(tensors, assign=True)
    return model


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    tokens = torch.arange(8) * 3
    return model.logits(model(tokens, torch.tensor([0, 5, 8], dtype=torch.int32), 5))


def test_an_adapter_adds_to_what_its_weight_says() -> None:
    """A model whose weights are the sums of both says the same."""
    tensors = read_all(InitialWeights(CONFIG, 7, add))
    merged = {name: tensor.clone() for name, tensor in tensors.items() if not is_adapters(name)}
    for place in PLACES:
        merged[f"{place}.weight"] += 0.5 * tensors[f"{place}.adapter.inner.weight"]
    plain = Transformer(CONFIG)
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits(filled(tensors)), logits(plain), rtol=1e-5, atol=1e-6)


def test_names_and_values_of_all_others_stay_what_they_are() -> None:
    tensors = read_all(InitialWeights(CONFIG, 7, add))
    plain = Transformer(CONFIG)
    plain.init_weights(torch.Generator().manual_seed(7))
    named = dict(plain.named_parameters())
    assert [name for name in tensors if not is_adapters(name)] == list(named)
    assert {name for name in tensors if is_adapters(name)} == {
        f"{place}.adapter.{name}" for place in PLACES for name in ("inner.weight", "scale")
    }
    assert all(torch.equal(tensors[name], one.detach()) for name, one in named.items())


def test_what_is_drawn_depends_on_the_seed_and_the_name_alone() -> None:
    model = build_model(CONFIG, Mesh(), add)
    drawn = {
        (name, seed): draw_adapter(model, f"{name}.adapter.inner.weight", seed)
        for name in PLACES
        for seed in (7, 8)
    }
    assert len({float(value.sum()) for value in drawn.values()}) == len(drawn)
    weights = InitialWeights(CONFIG, 7, add)
    for name, shape in reversed(PLACES.items()):
        part = TensorShard(shape[::-1])
        read = weights.read(f"{name}.adapter.inner.weight", part, 3, 9)
        assert torch.equal(read, drawn[name, 7].flatten()[3:12])


def test_a_checkpoint_has_all_adapters_or_none() -> None:
    tensors = read_all(InitialWeights(CONFIG, 7, add))
    found = HeldTensors()
    for name, tensor in tensors.items():
        if not name.endswith("o_proj.adapter.scale"):
            found.add(name, TensorShard(tuple(tensor.shape)), 0, tensor)
    with pytest.raises(RecipeError, match=r"0\.self_attn\.o_proj\.adapter\.scale \[1\] is missing"):
        StartWeights(CONFIG, found, 7, add)
    with pytest.raises(RecipeError, match=r"adapter\.inner\.weight \[48, 16\] is not in the model"):
        StartWeights(CONFIG, found, 7)


def test_tensor_parallelism_refuses_other_adapters_than_those_of_low_rank() -> None:
    mesh = Mesh(tensor=Group((0, 1)))
    with pytest.raises(RecipeError, match="adapters of the kind Shift cannot be divided"):
        build_model(CONFIG, mesh, add)
    build_model(CONFIG, mesh)


def test_adapters_are_saved_alone_with_the_base_as_parent(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    base = read_all(InitialWeights(CONFIG, 7, add))
    with registry.stage(Draft("checkpoint", "base", stage_key("checkpoint", 1, {}, []))) as staged:
        save_model(staged.path, CONFIG, {n: t for n, t in base.items() if not is_adapters(n)})
        parent = staged.publish()

    before = logits(filled(base))
    model = filled(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapters(name))
    engine = LocalEngine(model, AdamWConfig(), adapters=add)
    loss = F.cross_entropy(
        engine.model.logits(
            engine.model(torch.arange(8), torch.tensor([0, 8], dtype=torch.int32), 8)
        ),
        torch.arange(8),
    )
    loss.backward()  # type: ignore[no-untyped-call]
    engine.update(1e-2, norm=engine.gradient_norm(), clip_norm=1.0)
    state = engine.snapshot(frozen=False)
    shapes = {name: engine.parts[name].shape for name in engine.trained_names}
    (tmp_path / "tokenizer").touch()
    snapshot = Snapshot(
        TrainerState(),
        {"": ModelState(state.weights, state.optimizer, shapes)},
        b"",
        random_state(),
    )
    key = stage_key("checkpoint", 1, {"of": "adapter"}, [parent.digest])
    draft = Draft("checkpoint", "adapter", key, parents=(parent.digest,), role="adapter")
    with registry.stage(draft) as staged:
        snapshot.write(staged.path, {"": CONFIG}, tmp_path / "tokenizer", Mesh())
        artifact = staged.publish()

    alone = Stored.open([artifact.path / "model.safetensors"])
    assert alone.shapes == shapes
    check_names(alone.shapes, shapes, "adapters")
    with pytest.raises(IntegrityError, match="is missing"):
        check_shapes(alone.shapes, CONFIG, "adapters")
    assert artifact.manifest.parents == (parent.digest,)
    both = Stored.open([parent.path / "model.safetensors", artifact.path / "model.safetensors"])
    again = filled(read_all(StartWeights(CONFIG, both, 0, add)))
    assert torch.equal(logits(again), logits(engine.model))
    assert not torch.equal(logits(again), before)


def test_a_snapshot_of_the_whole_model_is_checked_as_before(tmp_path: Path) -> None:
    held = HeldTensors()
    for name, shape in list(expected_shapes(CONFIG).items())[1:]:
        held.add(name, TensorShard(shape), 0, torch.zeros(shape))
    (tmp_path / "tokenizer").touch()
    snapshot = Snapshot(TrainerState(), {"": ModelState(held, HeldTensors())}, b"", random_state())
    (tmp_path / "to").mkdir()
    with pytest.raises(IntegrityError, match=r"embed_tokens\.weight is missing"):
        snapshot.write(tmp_path / "to", {"": CONFIG}, tmp_path / "tokenizer", Mesh())
