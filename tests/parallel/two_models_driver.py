"""Trains two tiny models in one process, each with an engine of its own. Run by `test_two_models`.

As `driver.py`, whose batches these are. A run trains the actor, the critic, or both in turn. Then
each one's objective runs the other model too, and a third one that is frozen.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from driver import LENGTH, batches, continuations, main, step_means, through_folder
from torch import Tensor

from bc2.data.loader import Batch
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.parallel.build import InitialWeights, build_model
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.parallel.state import HeldTensors
from bc2.train.engines import deepspeed, frozen
from bc2.train.engines.base import Engine, EngineState
from bc2.train.engines.frozen import FrozenModel
from bc2.train.engines.local import LocalEngine
from bc2.train.objective import Loss
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.next_token import NextToken
from bc2.train.speed.clock import Clock

#: Two models that differ in everything that an engine could mix up.
MODELS = {
    "actor": ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
        context_length=LENGTH, position="rope",
    ),
    "critic": ModelConfig(
        vocab_size=64, hidden_size=16, intermediate_size=48, num_layers=3, num_heads=4,
        context_length=LENGTH, position="alibi",
    ),
}  # fmt: skip
RATES = {"actor": 1e-2, "critic": 3e-3}
SEEDS = {"actor": 5, "critic": 8}
STEPS = 4
#: The critic's loss is NaN at this step, so neither model may be updated.
BAD = 1
#: After this step both models are updated once more, and taken back.
KEPT = 2


def engine_of(name: str, run: dict[str, Any], mesh: Mesh) -> Engine:
    parallel = ParallelConfig(**run.get("parallel", {}))
    model, adamw = MODELS[name], AdamWConfig(learning_rate=RATES[name])
    settings = {
        "precision": run.get("precision", "fp32"),
        "checkpointing": run.get("checkpointing", 0),
    }
    if parallel.zero:
        return deepspeed.DeepSpeedEngine(
            model, adamw, parallel, mesh, device=torch.device("cpu"), seed=SEEDS[name], **settings
        )
    built = build_model(model, mesh).to_empty(device="cpu")
    engine = LocalEngine(built, adamw, mesh=mesh, **settings)
    engine.restore(InitialWeights(model, SEEDS[name]), HeldTensors())
    return engine


@contextmanager
def all_partitioned() -> Iterator[None]:
    """Have ZeRO 3 part small weights too, which it keeps whole, and fetch few beforehand."""
    settings = deepspeed.ds_settings

    def parting(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = settings(*args, **kwargs)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        found["zero_optimization"]["stage3_prefetch_bucket_size"] = 2000
        return found

    with ExitStack() as held:
        for module in (deepspeed, frozen):
            held.enter_context(mock.patch.object(module, "ds_settings", parting))
        yield


@dataclass
class Asking:
    """The loss of a model whose objective runs other models too, as one with a reward would."""

    asked: list[Engine | FrozenModel]
    bad: bool = False

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        said = [say(other, batch) for other in self.asked]
        loss = NextToken(2e-4)(model, batch, clock)
        said += [say(other, batch) for other in self.asked]
        # To no effect: adding zero changes no bit.
        total = sum((0 * x.mean() for x in said), loss.total)
        return Loss(total * float("nan") if self.bad else total, loss.sums)


@torch.no_grad()
def say(asked: Engine | FrozenModel, batch: Batch) -> Tensor:
    """Hidden states."""
    found: Tensor = asked.call_model(hidden_states, batch)
    return found.float()


def hidden_states(model: Transformer, batch: Batch) -> Tensor:
    tokens = torch.from_numpy(batch.tokens).flatten()
    found: Tensor = model(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
    return found


def digest(state: EngineState, mesh: Mesh) -> float:
    """Of the weights and states that all ranks hold."""
    found = hashlib.sha256()
    for held in (state.weights, state.optimizer):
        for fragment in sorted(held.fragments, key=lambda fragment: fragment.name):
            found.update(f"{fragment.name} {fragment.first}".encode())
            found.update(fragment.data.contiguous().numpy().tobytes())
    digests = mesh.world.all_gather_object(found.hexdigest())
    # A float has room for twelve hexadecimal digits.
    return float(int(hashlib.sha256("".join(digests).encode()).hexdigest()[:12], 16))


def accumulate(name: str, engine: Engine, step: int, asking: Asking, mesh: Mesh) -> float:
    return step_means(engine, batches(100 * SEEDS[name] + step, mesh), asking)["loss"]


def take_back(engines: dict[str, Engine], mesh: Mesh, folder: Path) -> None:
    """Update both with other samples, and take both back to what they were."""
    folder.mkdir(exist_ok=True)
    states = {name: engine.snapshot() for name, engine in engines.items()}
    for name, engine in engines.items():
        accumulate(name, engine, 77, Asking([]), mesh)
        engine.update(RATES[name], norm=engine.gradient_norm(), clip_norm=0.5)
    for name, engine in engines.items():
        stored = through_folder(states[name], mesh, folder / name)
        engine.restore(stored, stored)
        states[name].release()


def train(run: dict[str, Any]) -> list[list[float]]:
    """Of each model by turns, loss, norm and digest of each step; then what the actor says."""
    parallel = ParallelConfig(**run.get("parallel", {}))
    mesh = make_mesh(parallel, torch.device("cpu"), 120)
    asked: list[FrozenModel] = []
    with ExitStack() as held:
        if run.get("all_partitioned"):
            held.enter_context(all_partitioned())
        engines = {name: engine_of(name, run, mesh) for name in run["models"]}
        if len(engines) > 1:
            asked.append(
                FrozenModel(
                    MODELS["actor"], InitialWeights(MODELS["actor"], SEEDS["actor"]), parallel,
                    mesh, device=torch.device("cpu"), precision=run.get("precision", "fp32"),
                )
            )  # fmt: skip
    batch = batches(0, Mesh())[0]
    begun = [say(model, batch) for model in asked]
    # The frozen model is the actor as it begins, to the bit.
    assert all(torch.equal(said, say(engines["actor"], batch)) for said in begun)
    found = []
    for step in range(STEPS):
        found += make_step(step, engines, asked, mesh)
        if step == KEPT and asked:
            take_back(engines, mesh, Path(sys.argv[2]) / str(run["number"]))
    for model, said in zip(asked, begun, strict=True):
        assert torch.equal(say(model, batch), said)
        assert not torch.equal(say(engines["actor"], batch), said)
    if run.get("says") and "actor" in engines:
        with ExitStack() as held:
            for engine in list(engines.values())[1:]:
                held.enter_context(engine.runner())
            found += continuations(engines["actor"], mesh)
    return found


def make_step(
    step: int, engines: dict[str, Engine], asked: list[FrozenModel], mesh: Mesh
) -> list[list[float]]:
    """Judge both models, then update both or none."""
    if step == BAD and not asked:
        return []
    losses = {}
    for name, engine in engines.items():
        others = [*asked, *(other for other in engines.values() if other is not engine)]
        asking = Asking(others, bad=step == BAD and name == "critic")
        losses[name] = accumulate(name, engine, step, asking, mesh)
    norms = {name: engine.gradient_norm() for name, engine in engines.items()}
    if step == BAD:
        assert [name for name, norm in norms.items() if math.isnan(norm)] == ["critic"]
        for engine in engines.values():
            engine.discard()
        return []
    for name, engine in engines.items():
        engine.update(RATES[name], norm=norms[name], clip_norm=0.5)
    found = []
    for name, engine in engines.items():
        state = engine.snapshot()
        found.append([losses[name], norms[name], digest(state, mesh)])
        state.release()
    return found


if __name__ == "__main__":
    main(train)
