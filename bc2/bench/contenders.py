"""What is measured: bc2's engine and its peer, each making whole optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bc2.bench.data import read_steps
from bc2.bench.spec import Spec
from bc2.model.transformer import Transformer
from bc2.parallel.config import ParallelConfig
from bc2.parallel.mesh import make_mesh
from bc2.train.clock import Clock
from bc2.train.device import Precision, pick_precision
from bc2.train.engines.base import Engine
from bc2.train.engines.local import LocalEngine
from bc2.train.objective import NextToken


class Contender(Protocol):
    """Something that trains, with a clock for the parts of its steps."""

    clock: Clock

    def step(self) -> float:
        """Make one optimizer step; returns the loss in nats a token."""
        ...

    def lasting(self) -> Iterator[Tensor]:
        """What it holds between steps: weights and the optimizer's state."""
        ...


class Ours:
    """bc2's engine on bc2's loader: `Loop` without its log, guard and evaluation."""

    def __init__(self, spec: Spec, held: ExitStack):
        self.training = spec.training
        device = torch.device(spec.training.device)
        self.clock = Clock(device)
        torch.manual_seed(spec.training.seed)
        self.engine = _engine(spec, device, self.clock)
        self.objective = NextToken(spec.training.z_loss)
        self.steps = held.enter_context(read_steps(Path(spec.shards), spec.training))

    def step(self) -> float:
        with self.clock.part("data"):
            step = next(self.steps)
        measured = self.engine.accumulate(step.batches, self.objective, tokens=step.labels)
        norm = self.engine.gradient_norm()
        optimizer = self.training.optimizer
        self.engine.update(optimizer.learning_rate, norm=norm, clip_norm=optimizer.clip_norm)
        return measured["ce"]

    def lasting(self) -> Iterator[Tensor]:
        yield from self.engine.model.parameters()
        yield from self.engine.lasting()


def _engine(spec: Spec, device: torch.device, clock: Clock) -> Engine:
    settings: dict[str, Any] = {
        "precision": _precision(spec, device),
        "compile": spec.compile,
        "checkpointing": spec.checkpointing,
        "clock": clock,
    }
    training = spec.training
    if not spec.zero:
        model = Transformer(spec.model)
        model.init_weights(torch.Generator().manual_seed(training.seed))
        return LocalEngine(model.to(device), training.optimizer, **settings)
    from bc2.train.engines.deepspeed import DeepSpeedEngine

    parallel = ParallelConfig(zero=spec.zero)
    mesh = make_mesh(parallel, device)
    return DeepSpeedEngine(
        spec.model,
        training.optimizer,
        parallel,
        mesh,
        device=device,
        seed=training.seed,
        **settings,
    )


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The tensors of an optimizer's state."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _precision(spec: Spec, device: torch.device) -> Precision:
    return pick_precision(spec.training.precision, device)


def build(spec: Spec, held: ExitStack) -> Contender:
    """The contender of a spec; what it holds open ends with `held`."""
    if spec.kind == "hf":
        from bc2.bench.peer import Llama

        return Llama(spec, held)
    return Ours(spec, held)
