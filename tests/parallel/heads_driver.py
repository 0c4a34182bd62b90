"""Trains a tiny model with a head of values under some layouts. Run by `test_heads`.

As `driver.py`, whose model and batches these are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from driver import batches, engine_of, main, step_means

from bc2.data.loader import Batch
from bc2.model.transformer import Transformer
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.engines.base import Engine
from bc2.train.objective import Loss
from bc2.train.speed.clock import Clock

STEPS = 5


class Values:
    """An `Objective` of the values of labelled tokens: a label's size, or its class."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        tokens = torch.from_numpy(batch.tokens).flatten()
        # Those of this rank's tokens, where ranks share a sequence.
        labels = torch.from_numpy(batch.labels).flatten()
        hidden = model(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
        values, known = model.values(hidden), labels != -100
        if model.config.head == "scalar":
            losses = (values - labels / 64).square()
        else:
            losses = F.cross_entropy(
                values, labels.clamp(min=0) % values.shape[1], reduction="none"
            )
        total = losses[known].sum()
        return Loss(total, {"values": values.detach()[known].sum()})


def saved_head(engine: Engine, mesh: Mesh) -> list[float]:
    """The head's weight as all ranks together would save it: each number once."""
    held = engine.snapshot().weights
    mine = [(f.first, f.data.tolist()) for f in held.fragments if f.name == "score.weight"]
    every = sorted(piece for pieces in mesh.world.all_gather_object(mine) for piece in pieces)
    found: list[float] = []
    for first, numbers in every:
        assert first == len(found), "pieces overlap, or one is missing"
        found += numbers
    return found


def train(run: dict[str, Any]) -> list[list[float]]:
    """Loss, gradient norm and mean value of each step; then the head's weight."""
    mesh = make_mesh(ParallelConfig(**run.get("parallel", {})), torch.device("cpu"), 120)
    engine = engine_of(run, mesh)
    found = []
    for step in range(STEPS):
        measured = step_means(engine, batches(step, mesh), Values())
        norm = engine.gradient_norm()
        engine.update(1e-2, norm=norm, clip_norm=0.5)
        found.append([measured["loss"], norm, measured["values"]])
    return [*found, saved_head(engine, mesh)]


if __name__ == "__main__":
    main(train)
