"""The contenders of a benchmark: bc2's engine and its peer, both making optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bc2.bench.data import read_steps
from bc2.bench.made_data import made_steps
from bc2.bench.spec import Spec
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.train.models import make_models
from bc2.train.speed.clock import Clock
from bc2.train.trained_models import TrainedModels


class Contender(Protocol):
    """A training program, with a clock for the parts of its steps."""

    clock: Clock
    mesh: Mesh
    """The ranks that make its steps together."""

    def step(self) -> float:
        """Make one optimizer step; returns the headline metric, such as the loss."""
        ...

    def held_tensors(self) -> Iterator[Tensor]:
        """Tensors held between steps: weights and the optimizer's state."""
        ...


class Ours:
    """bc2's engines on an algorithm's data: training without log, guard and evaluation."""

    def __init__(self, spec: Spec, held: ExitStack):
        self.training = spec.training
        device = torch.device(self.training.device)
        self.clock = Clock(device)
        self.mesh = make_mesh(spec.parallel, device)
        settings = spec.settings
        models = make_models(
            settings.models, self.training, spec.parallel, self.mesh, clock=self.clock
        )
        self.models = TrainedModels.of(settings, models, lambda step, peak: peak)
        self.steps = (
            held.enter_context(read_steps(Path(spec.shards), self.training, self.mesh))
            if spec.reads_shards
            else made_steps(settings, self.mesh)
        )

    def step(self) -> float:
        with self.clock.part("data"):
            step = next(self.steps)
        weights, *_ = self.models.agree(step.weights, step.computed, False)
        measured = self.models.measure(lambda: step.batches, weights, 0)
        self.models.update(measured)
        return measured[self.models.metrics.headline.name]

    def held_tensors(self) -> Iterator[Tensor]:
        for model in self.models.models.values():
            yield from model.engine.model.parameters()
            yield from model.engine.held_tensors()


def build_contender(spec: Spec, held: ExitStack) -> Contender:
    """The contender of a spec; `held` closes what it opens."""
    if spec.kind == "hf":
        from bc2.bench.peer import Llama

        return Llama(spec, held)
    return Ours(spec, held)
