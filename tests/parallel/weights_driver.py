"""Trains part of a tiny model that begins with a checkpoint's weights. Run by `test_weights`.

As `driver.py`, whose batches these are. Every rank checks what it holds; the losses, and the
weights that all ranks save, go to the test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from driver import LENGTH, SHAPE, answers, batches, main, through_folder
from heads_driver import Values
from safetensors.torch import save_file
from torch import Tensor, nn
from two_models_driver import all_partitioned, hidden_states

from bc2.data.loader import Batch, total_weights
from bc2.model.adapters import Adapter, AddAdapters, is_adapters
from bc2.model.lora import add_lora
from bc2.model.lora_config import LoraConfig
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Linear, Transformer
from bc2.parallel.build import StartWeights
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import Stored
from bc2.train.engines.base import Engine
from bc2.train.engines.frozen import FrozenModel
from bc2.train.engines.make import make_engine
from bc2.train.pretrain.next_token import NextToken
from bc2.train.pretrain.pretrain_config import PretrainConfig

STEPS, MORE_STEPS = 4, 2
SEED = 11
LEARNING_RATE = 1e-2
BASE = ModelConfig(**SHAPE)

#: Which parameters are trained.
TRAINED: dict[str, Callable[[str], bool]] = {
    # The second half: gradients end before the first layer.
    "upper": lambda name: not name.startswith(("model.embed_tokens.", "model.layers.0.")),
    # Gradients pass through a frozen head and a frozen layer.
    "lower": lambda name: "layers.0." in name,
    # Matrices without a vector among them.
    "packed": lambda name: "W_pack" in name,
    "adapters": is_adapters,
    "lora": is_adapters,
}
#: Beside every matrix of every layer.
LORA = add_lora(LoraConfig(rank=3, alpha=6))


class TwoMatrices(Adapter):
    """x Dᵀ Uᵀ with two channels between them."""

    def __init__(self, linear: Linear):
        super().__init__()
        self.down = nn.Parameter(torch.empty(2, linear.in_features))
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(F.linear(x, self.down))
        return out

    def draw(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        assert name in ("down", "up.weight")
        return torch.empty(shape).normal_(0.0, 0.1, generator=generator)


def add_adapters(model: Transformer) -> None:
    """Beside every matrix of every layer."""
    for module in list(model.modules()):
        if isinstance(module, Linear):
            module.adapter = TwoMatrices(module)


def adapters_of(run: dict[str, Any]) -> AddAdapters | None:
    return {"adapters": add_adapters, "lora": LORA}.get(run["trained"])


#: In turn, of the tensors of a checkpoint: what others publish is in any of them.
TYPES = (torch.float16, torch.bfloat16, torch.float32)


def checkpoint(folder: Path, mesh: Mesh, types: tuple[torch.dtype, ...]) -> Stored:
    """A language model's weights."""
    path = folder / ("base.safetensors" if len(types) == 1 else "mixed.safetensors")
    if mesh.first and not path.exists():
        model = Transformer(BASE)
        model.init_weights(torch.Generator().manual_seed(3))
        weights = enumerate(model.state_dict().items())
        save_file({name: one.to(types[at % len(types)]) for at, (name, one) in weights}, path)
    mesh.world.all_gather_object(None)
    return Stored.open([path])


def made(run: dict[str, Any], begun: StartWeights, mesh: Mesh) -> Engine:
    parallel = ParallelConfig(**run.get("parallel", {}))
    config = PretrainConfig(
        length="1 steps", batch_tokens=LENGTH, micro_batch=1, sequence_length=LENGTH, device="cpu",
        precision=run.get("precision", "fp32"), compile=False, seed=SEED,
        activation_checkpointing=run.get("checkpointing", 0),
    )  # fmt: skip
    with ExitStack() as held:
        if run.get("all_partitioned"):
            held.enter_context(all_partitioned())
        return make_engine(
            begun.config, config, parallel, mesh,
            weights=begun, trainable=TRAINED[run["trained"]], adapters=adapters_of(run),
        )  # fmt: skip


def make_step(engine: Engine, step: int, mesh: Mesh) -> list[float]:
    mine = batches(step, mesh)
    tokens = engine.agree(total_weights(mine), 0, False).weights["tokens"]
    objective = NextToken(2e-4) if engine.model.config.head == "language" else Values()
    measured = engine.accumulate(mine, objective, divisor=tokens)
    norm = engine.gradient_norm()
    engine.update(LEARNING_RATE, norm=norm, clip_norm=0.5)
    return [measured["loss"] / tokens, norm]


def check_begun(engine: Engine, begun: StartWeights, trained: set[str]) -> int:
    """What is trained begins with the stored numbers, and what is frozen with those rounded to the
    type that it runs in. Of how many numbers that was checked."""
    rounded = engine.model.model.norm.weight.dtype
    fragments = engine.snapshot().weights.fragments
    for held in fragments:
        stored = begun.read(held.name, held.part, held.first, len(held.data))
        kept = stored.float() if held.name in trained else stored.to(rounded).float()
        assert held.data.dtype == torch.float32
        assert torch.equal(held.data, kept), held.name
    return sum(len(held.data) for held in fragments)


def check_held(engine: Engine, trained: set[str]) -> None:
    """A frozen parameter has one tensor, in the type of the forward pass, and nothing beside it."""
    layers = engine.model.model.norm.weight.dtype
    count = 0
    for name, parameter in engine.model.named_parameters():
        part = engine.parts[name]  # type: ignore[attr-defined]
        if name in trained:
            count += torch.Size(part.shard_shape).numel()
            continue
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert parameter.dtype == layers, name
        assert not hasattr(parameter, "_hp_mapping")
    numbers = sum(one.numel() for one in engine.held_tensors())
    # fp32 weights and two moments of each, steps, and what fills up ZeRO's flattened groups.
    assert numbers <= 3 * (count + 64 * len(trained)) + len(trained), (numbers, count)


def saved(engine: Engine, mesh: Mesh, folder: Path) -> dict[str, Tensor]:
    """The weights that all ranks hold, by way of files; each is held by one rank."""
    state = engine.snapshot()
    held: list[tuple[str, int]] = [(f.name, len(f.data)) for f in state.weights.fragments]
    every = [piece for pieces in mesh.world.all_gather_object(held) for piece in pieces]
    assert sum(size for _, size in every) == sum(
        torch.Size(shape).numel() for shape in state.weights.shapes.values()
    )
    stored = through_folder(state, mesh, folder)
    return {name: stored.whole(name) for name in state.weights.shapes}


def check_saved(
    found: dict[str, Tensor], begun: StartWeights, trained: set[str], states: Stored
) -> None:
    """Frozen weights are what they were, to the bit; all others are not, and have states."""
    for name, tensor in found.items():
        first = begun.read(name, TensorShard(tuple(tensor.shape)), 0, tensor.numel())
        assert torch.equal(tensor, first.float().view_as(tensor)) == (name not in trained), name
    for key in ("step", "exp_avg", "exp_avg_sq"):
        assert {n.removeprefix(f"{key}.") for n in states if n.startswith(f"{key}.")} == trained


def train(run: dict[str, Any]) -> list[list[float]]:
    """Loss and norm of each step, and the trained weights, which the run `saves`.

    With `resumes` those of the steps after an earlier run's.
    """
    folder = Path(sys.argv[2])
    mesh = make_mesh(ParallelConfig(**run.get("parallel", {})), torch.device("cpu"), 120)
    model = BASE.model_copy(update=run.get("head", {}))
    base = checkpoint(folder, mesh, TYPES if run.get("mixed") else (torch.bfloat16,))
    begun = StartWeights(model, base, SEED, adapters_of(run))
    engine = made(run, begun, mesh)
    trained = set(filter(TRAINED[run["trained"]], engine.parts))  # type: ignore[attr-defined]
    assert engine.trained_names == trained
    if run.get("mixed"):
        return [[float(check_begun(engine, begun, trained))]]
    if run.get("frozen_too"):
        check_frozen(engine, begun, run, mesh)
    steps = range(STEPS)
    if "resumes" in run:
        stored = open_saved(folder / run["resumes"])
        # What it was before must not matter.
        make_step(engine, 50, mesh)
        engine.restore(stored, stored)
        steps = range(STEPS, STEPS + MORE_STEPS)
    found = [make_step(engine, step, mesh) for step in steps]
    check_held(engine, trained)
    place = folder / run["saves"]
    weights = saved(engine, mesh, place)
    check_saved(weights, begun, trained, open_saved(place))
    if adapters_of(run) is not None:
        check_alone(run, engine, base, mesh, folder / f"{run['saves']} alone")
    return [*found, torch.cat([weights[name].flatten() for name in sorted(trained)]).tolist()]


def says(model: Transformer, batch: Batch) -> Tensor:
    """Hidden states, or the values of a model that has them."""
    hidden = hidden_states(model, batch)
    return hidden if model.config.head == "language" else model.values(hidden)


def check_frozen(engine: Engine, begun: StartWeights, run: dict[str, Any], mesh: Mesh) -> None:
    """A model that is not trained begins with the same weights, and says the same, to the bit."""
    model = FrozenModel(
        begun.config, begun, ParallelConfig(**run["parallel"]), mesh,
        device=torch.device("cpu"), precision="fp32", adapters=adapters_of(run),
    )  # fmt: skip
    batch = batches(0, Mesh())[0]
    with torch.no_grad():
        said = [each.call_model(says, batch) for each in (engine, model)]
    assert torch.equal(*said)


def check_alone(
    run: dict[str, Any], engine: Engine, base: Stored, mesh: Mesh, folder: Path
) -> None:
    """What was trained is saved alone; with the base it is the model again, to the bit."""
    alone = through_folder(engine.snapshot(frozen=False), mesh, folder)
    kinds = {"", "step.", "exp_avg.", "exp_avg_sq."}
    assert set(alone) == {kind + name for kind in kinds for name in engine.trained_names}
    both = Stored.open([folder.parent / "base.safetensors", folder / "model.safetensors"])
    config = engine.model.config
    adapters = adapters_of(run)
    again = made(run, StartWeights(config, both, SEED, adapters), mesh)
    data = batches(20, Mesh())[0]
    said = engine.evaluate(NextToken(0.0), data)["loss"]
    assert again.evaluate(NextToken(0.0), data)["loss"] == said
    texts = [answers(one, mesh, by_layer=False) for one in (engine, again)]
    if run.get("parallel", {}).get("zero") == 3 and mesh.replicas.size > 1:
        texts.append(answers(engine, mesh, by_layer=True))
    assert texts == [texts[0]] * len(texts), "the same weights generate the same"
    assert engine.trained_names == set(filter(is_adapters, engine.parts)), "frozen ones stay so"
    # A run goes on from what is saved alone, over the base that it has.
    begun = made(run, StartWeights(config, base, SEED, adapters), mesh)
    assert begun.evaluate(NextToken(0.0), data)["loss"] != said
    begun.restore(alone, alone)
    assert begun.evaluate(NextToken(0.0), data)["loss"] == said
    steps = [make_step(each, 30, mesh) for each in (engine, begun)]
    assert steps[0] == steps[1]


def open_saved(folder: Path) -> Stored:
    return Stored.open(sorted(folder.iterdir()))


if __name__ == "__main__":
    main(train)
