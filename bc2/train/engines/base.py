"""What all engines have in common: the same samples give the same update, whatever the layout."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bc2.data.loader import Batch
from bc2.generate.runner import ModelRunner
from bc2.model.adapters import AddAdapters
from bc2.model.transformer import Transformer
from bc2.parallel.build import build_model
from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.own_batch import own_batch
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import HeldTensors, StateSource
from bc2.train.engines.host_copies import CopySet
from bc2.train.objective import Loss, Objective
from bc2.train.speed.clock import Clock


@dataclass
class EngineState:
    """This rank's part of the fp32 weights and of the optimizer's state, in host memory.

    Frozen weights are in it too, in fp32, and have no state.
    """

    weights: HeldTensors = field(default_factory=HeldTensors)
    optimizer: HeldTensors = field(default_factory=HeldTensors)
    """``STATE.NAME`` of each state of a parameter (`bc2.train.optimizer`), such as ``step.NAME``;
    nothing before the first update."""
    give_back: Callable[[], None] | None = None
    """Gives the memory back to the engine, whose next snapshot is copied into it."""

    def release(self) -> None:
        """Say that nobody reads the tensors any more. They are not held from then on."""
        self.weights.clear()
        self.optimizer.clear()
        if self.give_back is not None:
            self.give_back()
            self.give_back = None


class Agreed(NamedTuple):
    """What all ranks know of a step together; each sample counts once."""

    weights: dict[str, float]
    """`Batch.weights`, summed."""
    computed: int
    """Tokens that go through the model."""
    stop: bool
    """Whether any rank is to stop."""


class Engine(ABC):
    """Holds a model and its optimizer on this rank.

    Every rank calls every method, in the same order. Sums of losses and the gradient's norm are
    those of all ranks. `accumulate` and `gradient_norm` change no weight, so a step can be
    judged before `update` makes it.
    """

    model: Transformer
    parts: dict[str, TensorShard]
    """The shard that this rank has of each parameter."""
    mesh: Mesh
    clock: Clock
    shares_weights: bool = False
    """Whether no rank has all weights, so that all ranks must run the model together."""
    adapters: AddAdapters | None = None
    """The model's adapters."""
    blank: bool = False
    """Whether the weights are whatever was in memory, so that `restore` must come first."""

    @abstractmethod
    def accumulate(
        self, batches: Iterable[Batch], objective: Objective, *, divisor: float
    ) -> dict[str, float]:
        """Forward and backward over this rank's micro-batches of one step.

        Args:
            objective: returns sums, of this rank's view of a batch.
            divisor: a weight of the step on all ranks. The gradient is that of the summed loss
                divided by it.

        Returns:
            Sums over the step and all ranks, not divided: ``loss`` (the objective), and the
            objective's `Loss.sums`.
        """

    @abstractmethod
    def gradient_norm(self) -> float:
        """Global L2 norm of the accumulated gradient."""

    @abstractmethod
    def update(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        """Clip and make one optimizer step."""

    @abstractmethod
    def discard(self) -> None:
        """Drop the accumulated gradient."""

    @property
    def trained_names(self) -> frozenset[str]:
        """The names of the parameters that are trained."""
        return frozenset(name for name, p in self.model.named_parameters() if p.requires_grad)

    @abstractmethod
    def snapshot(self, *, frozen: bool = True) -> EngineState:
        """Copies of this rank's part of the state.

        Until they are released, further snapshots take memory of their own.

        Args:
            frozen: of frozen weights too; without them it is what was trained alone, as adapters
                are saved.
        """

    @abstractmethod
    def restore(self, weights: StateSource, optimizer: StateSource) -> None:
        """Load a state, whatever the layout that saved it.

        Frozen weights that `weights` lacks stay as they are, unless the engine is `blank`.
        """

    def _keeps(self, name: str, weights: StateSource) -> bool:
        """Whether a frozen weight stays as it is."""
        return not self.blank and name not in weights

    @abstractmethod
    def held_tensors(self) -> Iterator[Tensor]:
        """Tensors held between steps beside the model: fp32 weights and the optimizer's state."""

    def check_restored(self) -> None:
        """Raises: RuntimeError if there are no weights yet, whoever forgot to restore them."""
        if self.blank:
            raise RuntimeError("the engine was made without weights, and none were restored")

    def agree(self, weights: Mapping[str, float], computed: int, stop: bool) -> Agreed:
        """What the ranks have of a step together.

        Args:
            weights: of this rank's micro-batches: the same names on every rank.
            computed: tokens of theirs that go through the model.
            stop: whether this rank is to stop.
        """
        mesh = self.mesh
        if mesh.world.size == 1:
            return Agreed({name: float(value) for name, value in weights.items()}, computed, stop)
        # The ranks of a replica have the same samples: the first of them counts them.
        counts = mesh.tensor.rank == 0 and mesh.sequence.rank == 0
        names = sorted(weights)
        mine = [weights[name] if counts else 0.0 for name in names]
        device = next(self.model.parameters()).device
        sums = torch.tensor(
            [*mine, computed if counts else 0, stop], dtype=torch.float64, device=device
        )
        *totals, everything, stops = mesh.world.all_reduce(sums).tolist()
        return Agreed(dict(zip(names, totals, strict=True)), int(everything), stops > 0)

    def loss(self, objective: Objective, batch: Batch, clock: Clock) -> Loss:
        """The objective of this rank's tokens of a micro-batch."""
        found: Loss = self._run_model(objective, own_batch(batch, self.mesh.sequence), clock)
        return found

    @contextmanager
    def runner(self) -> Iterator[ModelRunner]:
        """The weights as they are, to generate and score with; they must not change meanwhile.

        Every rank must enter it if the engine `shares_weights`.
        """
        self.check_restored()
        if self.mesh.sequence.size == 1:
            yield ModelRunner(self.model, self.mesh)
            return
        # Ranks that share tokens in training have the same weights: each reads all tokens here.
        whole = self._with_all_tokens()
        # Its tensors and not its parameters: assigning those would make frozen ones trainable.
        whole.load_state_dict(self.model.state_dict(), assign=True)
        yield ModelRunner(whole, self.mesh)

    def _with_all_tokens(self) -> Transformer:
        """This rank's part of the model on the meta device, to be given all tokens."""
        alone = replace(self.mesh, sequence=Group())
        return build_model(self.model.config, alone, self.adapters)

    def call_model(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(model, *arguments)``: one pass through the model, wherever its weights are.

        Another model's objective may call it too, under `torch.no_grad`: a gradient that came
        with another engine's backward pass would be neither summed over ranks nor judged.

        Raises:
            RuntimeError: gradients are enabled.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("an engine's gradients come from its own `accumulate` alone")
        self.check_restored()
        return self._run_model(function, *arguments)

    def _run_model(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)

    @torch.no_grad()
    def evaluate(self, objective: Objective, batch: Batch) -> dict[str, float]:
        """The objective's sums over a batch, which the ranks of `mesh.sequence` share."""
        self.check_restored()
        # With another clock: this is no part of a step.
        return self._summed(sums_of(self.loss(objective, batch, Clock())), data=False)

    def _summed(self, sums: Mapping[str, Tensor], *, data: bool) -> dict[str, float]:
        """Sums over all ranks that have different tokens; waits for the device.

        Args:
            data: over data-parallel ranks too, not only over those that share a micro-batch.
        """
        if not sums:
            return {}
        group = self.mesh.replicas if data else self.mesh.sequence
        values = group.all_reduce(torch.stack(list(sums.values())))
        return dict(zip(sums, values.tolist(), strict=True))


def sums_of(loss: Loss) -> dict[str, Tensor]:
    """A micro-batch's sums: fp64 scalars, which stay on the device."""
    every = {"loss": loss.total, **loss.sums}
    return {name: value.detach().double() for name, value in every.items()}


def add_sums(sums: dict[str, Tensor], loss: Loss) -> None:
    """Add a micro-batch's sums to those before it, without waiting for the device."""
    for name, value in sums_of(loss).items():
        sums[name] = sums[name] + value if name in sums else value


def mark_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each batch, and whether none follows."""
    waiting = None
    for batch in batches:
        if waiting is not None:
            yield waiting, False
        waiting = batch
    if waiting is not None:
        yield waiting, True


def root(square: float) -> float:
    """A norm from its square; NaN and inf stay what they are."""
    return math.sqrt(square) if square >= 0 else math.nan


def hold_share(
    held: HeldTensors, name: str, part: TensorShard, value: Tensor, mesh: Mesh, copies: CopySet
) -> None:
    """Hold this rank's share of a tensor that all replicas have, so that each writes some of it.

    In fp32; the copy is complete when its set is.
    """
    flat, group = value.detach().reshape(-1), mesh.replicas
    if part.dim is None and mesh.tensor.rank:
        # Not cut: another tensor rank writes it.
        held.add(name, part, 0, None)
        return
    share = -(-len(flat) // group.size)
    first = min(group.rank * share, len(flat))
    held.add(name, part, first, copies.copy(name, flat[first : first + share].float()))
