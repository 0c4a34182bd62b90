"""Trains a tiny model under some layouts, as one rank of several. Run by `test_layouts`.

    python driver.py JSON FOLDER

A list of runs goes in; rank 0 prints a line of JSON for each: losses, norms, samples.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from bc2.data.loader import Batch, pack, total_weights
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request, ScoreRequest
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.model_config import ModelConfig
from bc2.parallel.build import InitialWeights, build_model
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.parallel.state import HeldTensors, Stored, write_fragments
from bc2.train.engines import gradients
from bc2.train.engines.base import Engine, EngineState
from bc2.train.engines.local import LocalEngine
from bc2.train.objective import Objective
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.next_token import NextToken

ROWS, LENGTH, EOS = 8, 16, 2
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2,
    "num_heads": 4, "context_length": LENGTH,
}  # fmt: skip


def engine_of(run: dict[str, Any], mesh: Mesh) -> Engine:
    parallel = ParallelConfig(**run.get("parallel", {}))
    model = ModelConfig(**SHAPE | {"position": run.get("position", "rope")} | run.get("model", {}))
    settings = {
        "precision": run.get("precision", "fp32"),
        "checkpointing": run.get("checkpointing", 0),
    }
    adamw = AdamWConfig(learning_rate=1e-2)
    if parallel.zero:
        from bc2.train.engines.deepspeed import DeepSpeedEngine

        device = torch.device("cpu")
        return DeepSpeedEngine(model, adamw, parallel, mesh, device=device, **settings)
    built = build_model(model, mesh).to_empty(device="cpu")
    engine = LocalEngine(built, adamw, mesh=mesh, **settings)
    engine.restore(InitialWeights(model, 0), HeldTensors())
    return engine


def batches(step: int, mesh: Mesh) -> list[Batch]:
    """This rank's micro-batches: rows of documents of uneven length, one row each."""
    rng = np.random.default_rng(step)
    rows = rng.integers(3, 64, size=(ROWS, LENGTH + 1))
    rows[rng.random(rows.shape) < np.linspace(0.02, 0.4, ROWS)[:, None]] = EOS
    ids = np.zeros(1, np.int64)
    every = [pack(rows[i : i + 1], ids, EOS) for i in range(ROWS)]
    return every[mesh.data.rank :: mesh.data.size]


def step_means(engine: Engine, mine: list[Batch], objective: Objective) -> dict[str, float]:
    """Accumulate a step, of which these are this rank's micro-batches; means over its tokens."""
    tokens = engine.agree(total_weights(mine), 0, False).weights["tokens"]
    sums = engine.accumulate(mine, objective, divisor=tokens)
    return {name: value / tokens for name, value in sums.items()}


def through_folder(state: EngineState, mesh: Mesh, folder: Path) -> Stored:
    """Write what all ranks hold into a new folder, and open it."""
    files = {**state.weights.files("model"), **state.optimizer.files("optimizer")}
    if mesh.first:
        folder.mkdir()
        for name, file in files.items():
            file.create(folder / name)
    mesh.world.all_gather_object(None)
    for held in (state.weights, state.optimizer):
        write_fragments(folder, files, held.fragments)
    mesh.world.all_gather_object(None)
    return Stored.open([folder / name for name in files])


def through_files(engine: Engine, mesh: Mesh, folder: Path) -> None:
    """Write what all ranks hold, spoil the engine, and read it back."""
    state = engine.snapshot()
    # It is written beside the training: what happens after must not show in it.
    step_means(engine, batches(77, mesh), NextToken(2e-4))
    engine.update(1e-2, norm=engine.gradient_norm(), clip_norm=0.5)
    stored = through_folder(state, mesh, folder)
    engine.restore(InitialWeights(engine.model.config, 9), HeldTensors())
    engine.restore(stored, stored)
    again = engine.snapshot()
    for held, back in ((state.weights, again.weights), (state.optimizer, again.optimizer)):
        kept = {fragment.name: fragment.data for fragment in held.fragments}
        got = {fragment.name: fragment.data for fragment in back.fragments}
        assert kept.keys() == got.keys()
        wrong = [name for name in kept if not torch.equal(kept[name], got[name])]
        assert not wrong, wrong


def continuations(engine: Engine, mesh: Mesh) -> list[list[float]]:
    """How the model goes on with two prompts, by the likeliest token and by drawn ones."""
    found = []
    for top_k in (1, 0):
        settings = SamplingConfig(top_k=top_k, max_new_tokens=6, seed=3)
        prompts = [[5, 40, 9], [33, 8, 7, 60, 21, 4]]
        # The likeliest token is soon the end; drawn texts may end, each at its own length.
        eos = -1 if top_k else EOS
        with engine.runner() as runner:
            answering = InferenceEngine(runner, EngineConfig(cache_bytes=2**20), eos_id=eos)
            answers = list(answering.generate([Request(prompt, settings) for prompt in prompts]))
        found += [[float(i) for i in answer.continuations[0].ids] for answer in answers]
    assert mesh.world.all_gather_object(found) == [found] * mesh.world.size
    return found


def answers(engine: Engine, mesh: Mesh, *, by_layer: bool) -> list[list[float]]:
    """Three greedy continuations, and three scores; weights stay as they are, bit for bit.

    Args:
        by_layer: as if all weights of a ZeRO 3 engine did not fit on a rank at once.
    """
    settings = SamplingConfig(temperature=0.0, max_new_tokens=6)
    texts = [[5, 40, 9, 12, 30], [5, 40, 9, 12, 7, 7, 11], [33]]
    before = {f.name: f.data.clone() for f in engine.snapshot().weights.fragments}
    with ExitStack() as held:
        if by_layer:
            held.enter_context(mock.patch.object(engine, "_room_for_all", return_value=False))
        runner = held.enter_context(engine.runner())
        assert (runner._weights_of is not None) == by_layer
        config = EngineConfig(cache_bytes=2**16, block_tokens=4, step_tokens=9)
        answering = InferenceEngine(runner, config, eos_id=-1, poison=True)
        said = answering.generate([Request(text, settings) for text in texts])
        found = [[float(i) for i in answer.continuations[0].ids] for answer in said]
        asked = [ScoreRequest(text, [1, 60, 33, 8]) for text in texts]
        for score in answering.score(asked, top_k=3):
            top = [number for each in score.top for pair in each for number in pair]
            found.append([*score.log_probs, *map(float, score.greedy), *top])
        answering.memory.pool.check([])
    after = {f.name: f.data for f in engine.snapshot().weights.fragments}
    assert before.keys() == after.keys()
    assert not [name for name in before if not torch.equal(before[name], after[name])]
    assert mesh.world.all_gather_object(found) == [found] * mesh.world.size
    return found


def train(run: dict[str, Any]) -> list[list[float]]:
    """Loss and gradient norm of each step."""
    gradients.BUCKET_BYTES = run.get("bucket_bytes", 64 << 20)
    mesh = make_mesh(ParallelConfig(**run.get("parallel", {})), torch.device("cpu"), 120)
    engine = engine_of(run, mesh)
    objective = NextToken(2e-4)
    found = []
    for step in range(run.get("steps", 20)):
        mine = batches(step, mesh)
        if step == run.get("says_before"):
            found += continuations(engine, mesh)
        if step in run.get("answers_before", ()):
            found += answers(engine, mesh, by_layer=run.get("by_layer", False))
        if step == run.get("left_out"):
            # What was accumulated and is not wanted must leave nothing behind.
            step_means(engine, mine, objective)
            engine.discard()
            continue
        measured = step_means(engine, mine, objective)
        norm = engine.gradient_norm()
        engine.update(1e-2, norm=norm, clip_norm=0.5)
        found.append([measured["loss"], norm])
    if run.get("again"):
        # A state that is taken back must be the one that was given.
        through_files(engine, mesh, Path(sys.argv[2]) / run["again"])
        found.append([step_means(engine, batches(99, mesh), objective)["loss"], 0.0])
    return found


def main(train: Callable[[dict[str, Any]], list[list[float]]]) -> None:
    """Make the runs of the command line; rank 0 prints what each came to."""
    torch.set_num_threads(1)
    for run in json.loads(sys.argv[1]):
        found = train(run)
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{json.dumps(found)}", flush=True)
    # Gloo's threads end now: at the interpreter's end they may end it with SIGABRT.
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(train)
