"""The contenders of a benchmark: bc2's engine and its peer, both making optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bc2.bench.data import read_steps
from bc2.bench.spec import Spec
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.train.clock import Clock
from bc2.train.engines.make import make_engine
from bc2.train.pretrain.next_token import NextToken


class Contender(Protocol):
    """A training program, with a clock for the parts of its steps."""

    clock: Clock
    mesh: Mesh
    """The ranks that make its steps together."""

    def step(self) -> float:
        """Make one optimizer step; returns the loss in nats a token."""
        ...

    def held_tensors(self) -> Iterator[Tensor]:
        """Tensors held between steps: weights and the optimizer's state."""
        ...


class Ours:
    """bc2's engine on bc2's loader: training without log, guard and evaluation."""

    def __init__(self, spec: Spec, held: ExitStack):
        self.training = spec.training
        device = torch.device(self.training.device)
        self.clock = Clock(device)
        self.mesh = make_mesh(spec.parallel, device)
        self.engine = make_engine(
            spec.model, self.training, spec.parallel, self.mesh, clock=self.clock
        )
        self.objective = NextToken(self.training.z_loss)
        self.steps = held.enter_context(read_steps(Path(spec.shards), self.training, self.mesh))

    def step(self) -> float:
        with self.clock.part("data"):
            step = next(self.steps)
        tokens = self.engine.agree(step.weights, step.computed, False).weights["tokens"]
        sums = self.engine.accumulate(step.batches, self.objective, divisor=tokens)
        norm = self.engine.gradient_norm()
        optimizer = self.training.optimizer
        self.engine.update(optimizer.learning_rate, norm=norm, clip_norm=optimizer.clip_norm)
        return sums["ce"] / tokens

    def held_tensors(self) -> Iterator[Tensor]:
        yield from self.engine.model.parameters()
        yield from self.engine.held_tensors()


def build_contender(spec: Spec, held: ExitStack) -> Contender:
    """The contender of a spec; `held` closes what it opens."""
    if spec.kind == "hf":
        from bc2.bench.peer import Llama

        return Llama(spec, held)
    return Ours(spec, held)
