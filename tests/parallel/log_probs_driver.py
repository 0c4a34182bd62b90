"""Trains a tiny model by its log-probabilities under some layouts. Run by `test_log_probs`.

As `driver.py`, whose model and batches these are; then a line that the model says of a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from driver import batches, engine_of, main, step_means

from bc2.data.loader import Batch
from bc2.model.log_probs import TokenLogProbs
from bc2.model.transformer import Transformer
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.engines.base import Engine
from bc2.train.objective import Loss
from bc2.train.pretrain.next_token import NextToken
from bc2.train.speed.clock import Clock

STEPS = 5


def log_probs(model: Transformer, batch: Batch, **options: Any) -> TokenLogProbs:
    tokens = torch.from_numpy(batch.tokens).flatten()
    labels = torch.from_numpy(batch.labels).flatten()
    hidden = model(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
    return model.lm_head.log_probs(hidden, labels, **options)


class LogProbs:
    """An `Objective` of log-probabilities, with an entropy that has a gradient or none."""

    def __init__(self, entropy_weight: float):
        self.entropy_weight = entropy_weight

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        found = log_probs(model, batch, entropy=True, top_k=2)
        assert found.entropy is not None
        total = -found.log_probs.sum()
        if self.entropy_weight:
            total = total - self.entropy_weight * found.entropy.sum()
        return Loss(total, {"entropy": found.entropy.detach().sum()})


def says(engine: Engine, mesh: Mesh) -> list[list[float]]:
    """Everything that `log_probs` gives for the first batch, the same on every rank."""
    with torch.no_grad():
        found = log_probs(engine.model, batches(99, Mesh())[0], entropy=True, top_k=5)
    said = [x.double().flatten().tolist() for x in found if x is not None]
    assert len(said) == 5
    others: list[Any] = [None] * mesh.world.size
    if mesh.world.size > 1:
        torch.distributed.all_gather_object(others, said)
        assert others == [said] * mesh.world.size
    return said


def train(run: dict[str, Any]) -> list[list[float]]:
    """Loss and gradient norm of each step, and what the model then says."""
    mesh = make_mesh(ParallelConfig(**run.get("parallel", {})), torch.device("cpu"), 120)
    engine = engine_of(run, mesh)
    fused = run.get("fused", False)
    objective = NextToken(0.0) if fused else LogProbs(run.get("entropy_weight", 0.0))
    found = []
    for step in range(STEPS):
        measured = step_means(engine, batches(step, mesh), objective)
        norm = engine.gradient_norm()
        engine.update(1e-2, norm=norm, clip_norm=0.5)
        found.append([measured["loss"], norm])
    # A sequence's ranks have other tokens each.
    return found if mesh.sequence.size > 1 else found + says(engine, mesh)


if __name__ == "__main__":
    main(train)
