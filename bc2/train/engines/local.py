"""Plain torch: every rank holds all states of its model. DeepSpeed is not imported.

bf16 layers in the forward and backward pass over fp32 master weights, fp32 accumulated
gradients and fp32 optimizer state (Baichuan 2 §2.6); or fp32 throughout. It is
one process on one device, or ranks. Data-parallel ranks sum their fp32 gradients, and each
updates all weights (ZeRO 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bc2.data.loader import Batch
from bc2.model.adapters import AddAdapters
from bc2.model.heads import Head
from bc2.model.transformer import Attention, Linear, Transformer
from bc2.parallel.build import parts
from bc2.parallel.mesh import Mesh
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import StateSource
from bc2.train.allocator import keep_freed_memory
from bc2.train.device import DTYPES
from bc2.train.engines.base import (
    Engine,
    EngineState,
    add_sums,
    hold_share,
    mark_last,
    root,
)
from bc2.train.engines.gradients import Gradients, SummedGradients
from bc2.train.engines.host_copies import HostCopies
from bc2.train.engines.trainable import freeze
from bc2.train.objective import Objective
from bc2.train.optimizer import STEP, make_optimizer
from bc2.train.precision import Precision
from bc2.train.speed.clock import Clock

if TYPE_CHECKING:
    from bc2.train.optimizer_config import OptimizerConfig


class LocalEngine(Engine):
    """Holds the model, its fp32 master weights and the optimizer.

    Args:
        model: built on the device in fp32, this rank's part of it; its weights become the
            master weights. Parameters that require no gradient are frozen: they are held in the
            type of the forward pass, embedding and head too, and have no master.
        config: the optimizer's settings.
        precision: type of the forward and backward pass.
        compile: run each layer through torch.compile.
        checkpointing: recompute activations by segments of this many layers; 0: keep them.
        clock: told how long forward, head, backward and optimizer take.
        mesh: the ranks; None: this one alone.
        blank: the model's weights are not set yet: see `Engine.blank`.
        adapters: those that the model has.
    """

    def __init__(
        self,
        model: Transformer,
        config: OptimizerConfig,
        *,
        precision: Precision = "fp32",
        compile: bool = False,
        checkpointing: int = 0,
        clock: Clock | None = None,
        mesh: Mesh | None = None,
        blank: bool = False,
        adapters: AddAdapters | None = None,
    ):
        if model.device.type == "cpu":
            keep_freed_memory()
        self.model = model
        self.blank = blank
        self.adapters = adapters
        self.mesh = mesh or Mesh()
        self.clock = clock or Clock()
        self.parts = parts(model.config, self.mesh, adapters)
        self.shares_weights = self.mesh.tensor.size > 1 or self.mesh.sequence.size > 1
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self.master = _masters(model) if precision == "bf16" else list(model.parameters())
        """What is updated of each parameter, in the model's order; a frozen one itself."""
        if precision == "bf16":
            for half in (model.model.layers, model.model.norm):
                half.to(DTYPES[precision])
            freeze(model, trained, DTYPES[precision])
        model.model.checkpointing = checkpointing
        if compile:
            # By layer: one graph serves them all, and recomputation stays outside of it.
            for layer in model.model.layers:
                layer.compile()
            if model.device.type == "cpu":
                _choose_cpu_kernels(model)
            elif isinstance(model.head, Head):
                model.head.compiled = True
        self.trained = {
            name: master
            for name, master in zip(self.parts, self.master, strict=True)
            if master.requires_grad
        }
        """The fp32 weights that the optimizer updates, by parameter."""
        shapes = {name: part.shape for name, part in self.parts.items()}
        self.optimizer = make_optimizer(self.trained, shapes, config)
        self._copies_of_state = HostCopies(model.device)
        pairs = [
            (parameter, master)
            for parameter, master in zip(model.parameters(), self.master, strict=True)
            if parameter.requires_grad
        ]
        several = self.mesh.replicas.size > 1
        self._gradients = (
            SummedGradients(pairs, self.mesh.replicas) if several else Gradients(pairs)
        )

    def accumulate(
        self, batches: Iterable[Batch], objective: Objective, *, divisor: float
    ) -> dict[str, float]:
        self.check_restored()
        self.discard()
        sums: dict[str, Tensor] = {}
        for batch, last in self._with_last(batches):
            loss = self.loss(objective, batch, self.clock)
            with self.clock.part("backward"), self._gradients.backward(last):
                torch.autograd.backward(loss.total / divisor)
            add_sums(sums, loss)
        with self.clock.part("backward"):
            self._gradients.finish()
            return self._summed(sums, data=True)

    def _with_last(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Each batch, and whether none follows, which only several replicas need to know."""
        if self.mesh.replicas.size > 1:
            yield from mark_last(batches)
        else:
            # A signal may end a step between two batches, so none is read before its turn.
            yield from ((batch, False) for batch in batches)

    def _copies(self) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        """bf16 parameters, each with its fp32 master."""
        for parameter, master in zip(self.model.parameters(), self.master, strict=True):
            if parameter is not master:
                yield parameter, master

    def gradient_norm(self) -> float:
        with self.clock.part("optimizer"):
            if self.mesh.tensor.size == 1:
                grads = [p.grad for p in self.trained.values() if p.grad is not None]
                return float(torch.nn.utils.get_total_norm(grads))
            return self._norm_of_parts()

    def _norm_of_parts(self) -> float:
        """The norm where each tensor rank has a part of the cut matrices; the rest counts once."""
        cut: list[Tensor] = []
        whole: list[Tensor] = []
        for name, master in self.trained.items():
            if master.grad is not None:
                (whole if self.parts[name].dim is None else cut).append(master.grad)
        squares = [torch.nn.utils.get_total_norm(some).double().square() for some in (cut, whole)]
        return root(float(self.mesh.tensor.all_reduce(squares[0]) + squares[1]))

    def update(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        with self.clock.part("optimizer"):
            self.optimizer.prepare(learning_rate, norm=norm, clip_norm=clip_norm)
            self.optimizer.inner.step()
            self._publish_weights()
            self.discard()

    def discard(self) -> None:
        self.optimizer.inner.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        self._gradients.discard()

    @torch.no_grad()
    def _publish_weights(self) -> None:
        copies = list(self._copies())
        if copies:
            torch._foreach_copy_([half for half, _ in copies], [master for _, master in copies])

    def snapshot(self, *, frozen: bool = True) -> EngineState:
        self.check_restored()
        with self._copies_of_state.begin() as copies:
            state = EngineState(give_back=copies.give_back)
            for (name, part), master in zip(self.parts.items(), self.master, strict=True):
                if frozen or name in self.trained:
                    hold_share(state.weights, name, part, master, self.mesh, copies)
                if name not in self.trained:
                    continue
                for key, value in self.optimizer.state[master].items():
                    whole = part if value.dim() else TensorShard(())
                    hold_share(state.optimizer, f"{key}.{name}", whole, value, self.mesh, copies)
        return state

    def held_tensors(self) -> Iterator[Tensor]:
        yield from self.trained.values()
        yield from self.optimizer.tensors()

    @torch.no_grad()
    def restore(self, weights: StateSource, optimizer: StateSource) -> None:
        for (name, part), master in zip(self.parts.items(), self.master, strict=True):
            if name in self.trained or not self._keeps(name, weights):
                master.copy_(weights.read(name, part, 0, master.numel()).view_as(master))
            if name not in self.trained:
                continue
            state: dict[str, Tensor] = {}
            for key in self.optimizer.state_names[name]:
                if f"{key}.{name}" in optimizer:
                    value = optimizer.read(f"{key}.{name}", part, 0, master.numel())
                    state[key] = value.view_as(master).to(master.device, copy=True)
            if f"{STEP}.{name}" in optimizer:
                step = optimizer.read(f"{STEP}.{name}", TensorShard(()), 0, 1).reshape(())
                state[STEP] = step.to(master.device, copy=True)
            self.optimizer.set_state(master, state)
        self._publish_weights()
        self.discard()
        self.blank = False


def _choose_cpu_kernels(model: Transformer) -> None:
    """Switch to the kernels that are fast on a CPU where a compiler is at hand."""
    for module in model.modules():
        if isinstance(module, Attention) and module.backend == "auto":
            module.backend = "bmm"
        elif isinstance(module, Head):
            module.compiled = True
        elif isinstance(module, Linear):
            module.bmm_backward = True


def _masters(model: Transformer) -> list[torch.nn.Parameter]:
    """fp32 parameters for the optimizer: copies of those that become bf16, the layers' and the
    last norm's.

    The embedding and the head are their own masters. An embedding looks rows up and NormHead
    makes unit rows: rounding those is all that bf16 needs. It saves a copy of the largest
    matrices and passes over them, and their gradients are never rounded. A head of values is
    small, and what it says is in fp32. A frozen parameter has no master and stands for itself.
    """
    own = {model.model.embed_tokens.weight, model.head.weight}
    own |= {p for p in model.parameters() if not p.requires_grad}
    return [
        p if p in own else torch.nn.Parameter(p.detach().float().clone())
        for p in model.parameters()
    ]
