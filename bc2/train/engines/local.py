"""Plain torch: every rank holds the states of its whole model. DeepSpeed is not imported.

bf16 layers in the forward and backward pass over fp32 master weights, fp32 accumulated
gradients and fp32 optimizer state (Baichuan 2 §2.6); or fp32 throughout. Alone it is one
process on one device. Data-parallel ranks each update all weights alike (ZeRO 0), after
their fp32 gradients were summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from bc2.data.loader import Batch
from bc2.model.transformer import Attention, Head, Linear, Transformer
from bc2.parallel.build import parts
from bc2.parallel.mesh import Mesh
from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import HeldTensors, StateSource
from bc2.train.allocator import keep_freed_memory
from bc2.train.clock import Clock
from bc2.train.device import DTYPES
from bc2.train.engines.base import (
    MOMENTS,
    Engine,
    EngineState,
    add_sums,
    make_adamw,
    root,
    set_update,
)
from bc2.train.objective import Objective
from bc2.train.precision import Precision
from bc2.train.pretrain_config import AdamWConfig


class LocalEngine(Engine):
    """Holds the model, its fp32 master weights and AdamW.

    Args:
        model: built on the device in fp32, this rank's part of it; its weights become the
            master weights.
        config: AdamW settings.
        precision: type of the forward and backward pass.
        compile: run each layer through torch.compile.
        checkpointing: recompute activations by segments of this many layers; 0: keep them.
        clock: told how long forward, head, backward and optimizer take.
        mesh: the ranks; None: this one alone.
    """

    def __init__(
        self,
        model: Transformer,
        config: AdamWConfig,
        *,
        precision: Precision = "fp32",
        compile: bool = False,
        checkpointing: int = 0,
        clock: Clock | None = None,
        mesh: Mesh | None = None,
    ):
        if model.lm_head.weight.device.type == "cpu":
            keep_freed_memory()
        self.model = model
        self.mesh = mesh or Mesh()
        self.clock = clock or Clock()
        self.parts = parts(model.config, self.mesh)
        self.shares_weights = self.mesh.tensor.size > 1 or self.mesh.sequence.size > 1
        self.master = _masters(model) if precision == "bf16" else list(model.parameters())
        if precision == "bf16":
            for half in (model.model.layers, model.model.norm):
                half.to(DTYPES[precision])
        model.model.checkpointing = checkpointing
        if compile:
            # By layer: one graph serves them all, and recomputation stays outside of it.
            for layer in model.model.layers:
                layer.compile()
            if model.lm_head.weight.device.type == "cpu":
                _choose_cpu_kernels(model)
        named = dict(zip(self.parts, self.master, strict=True))
        self.optimizer = make_adamw(named, self.parts, config)

    def accumulate(
        self, batches: Iterable[Batch], objective: Objective, *, tokens: int
    ) -> dict[str, float]:
        self.discard()
        sums: dict[str, float] = {}
        for batch in batches:
            loss = self.loss(objective, batch, self.clock)
            with self.clock.part("backward"):
                torch.autograd.backward(loss.total / tokens)
                self._collect()
            add_sums(sums, loss)
        with self.clock.part("backward"):
            for master in self.master:
                if master.grad is not None:
                    self.mesh.replicas.all_reduce(master.grad)
            sums = self._summed(sums, data=True)
        return {name: value / tokens for name, value in sums.items()}

    def _collect(self) -> None:
        """Add the micro-batch's bf16 gradients to the master's in fp32."""
        for parameter, master in self._copies():
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def _copies(self) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        """bf16 parameters, each with its fp32 master."""
        for parameter, master in zip(self.model.parameters(), self.master, strict=True):
            if parameter is not master:
                yield parameter, master

    def gradient_norm(self) -> float:
        with self.clock.part("optimizer"):
            if self.mesh.tensor.size == 1:
                grads = [p.grad for p in self.master if p.grad is not None]
                return float(torch.nn.utils.get_total_norm(grads))
            return self._norm_of_parts()

    def _norm_of_parts(self) -> float:
        """Of cut matrices each tensor rank has some; what is not cut counts once."""
        cut: list[Tensor] = []
        whole: list[Tensor] = []
        for part, master in zip(self.parts.values(), self.master, strict=True):
            if master.grad is not None:
                (whole if part.dim is None else cut).append(master.grad)
        squares = [torch.nn.utils.get_total_norm(some).double().square() for some in (cut, whole)]
        return root(float(self.mesh.tensor.all_reduce(squares[0]) + squares[1]))

    def update(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        with self.clock.part("optimizer"):
            set_update(self.optimizer, learning_rate, norm=norm, clip_norm=clip_norm)
            self.optimizer.step()
            self._publish_weights()
            self.discard()

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _publish_weights(self) -> None:
        copies = list(self._copies())
        if copies:
            torch._foreach_copy_([half for half, _ in copies], [master for _, master in copies])

    def snapshot(self) -> EngineState:
        state = EngineState()
        for (name, part), master in zip(self.parts.items(), self.master, strict=True):
            _hold(state.weights, name, part, master, self.mesh)
            for key, value in self.optimizer.state[master].items():
                whole = part if value.dim() else TensorShard(())
                _hold(state.optimizer, f"{key}.{name}", whole, value, self.mesh)
        return state

    def lasting(self) -> Iterator[Tensor]:
        yield from self.master
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    @torch.no_grad()
    def restore(self, weights: StateSource, optimizer: StateSource) -> None:
        for (name, part), master in zip(self.parts.items(), self.master, strict=True):
            read = weights.read(name, part, 0, master.numel())
            master.copy_(read.view_as(master))
            kept = self.optimizer.state[master]
            kept.clear()
            for key in MOMENTS:
                if f"{key}.{name}" in optimizer:
                    value = optimizer.read(f"{key}.{name}", part, 0, master.numel())
                    kept[key] = value.view_as(master).to(master.device, copy=True)
            if f"step.{name}" in optimizer:
                step = optimizer.read(f"step.{name}", TensorShard(()), 0, 1).reshape(())
                kept["step"] = step.to(master.device, copy=True)
        self._publish_weights()
        self.discard()


def _hold(held: HeldTensors, name: str, part: TensorShard, value: Tensor, mesh: Mesh) -> None:
    """Keep this rank's share of what all replicas have, so that each writes some of it."""
    flat, group = value.detach().reshape(-1), mesh.replicas
    if part.dim is None and mesh.tensor.rank:
        # Not cut: another tensor rank writes it.
        held.add(name, part, 0, None)
        return
    share = -(-len(flat) // group.size)
    first = min(group.rank * share, len(flat))
    held.add(name, part, first, _to_host(flat[first : first + share]))


def _choose_cpu_kernels(model: Transformer) -> None:
    """Take the ways of computing that a compiler makes fast on a CPU, since it is there anyway."""
    for module in model.modules():
        if isinstance(module, Attention) and module.backend == "auto":
            module.backend = "bmm"
        elif isinstance(module, Head):
            module.compiled = True
        elif isinstance(module, Linear):
            module.bmm_backward = True


def _masters(model: Transformer) -> list[torch.nn.Parameter]:
    """fp32 parameters for AdamW: copies of the layers' and the last norm's, which become bf16.

    The embedding and the head are their own masters. An embedding looks rows up and NormHead
    makes unit rows: rounding those is all that bf16 needs. It saves a copy of the largest
    matrices and passes over them, and their gradients are never rounded.
    """
    own = {model.model.embed_tokens.weight, model.lm_head.weight}
    return [
        p if p in own else torch.nn.Parameter(p.detach().float().clone())
        for p in model.parameters()
    ]


def _to_host(value: Tensor) -> Tensor:
    # clone(): on a CPU .cpu() would share memory with the next step's update.
    return value.detach().clone() if value.device.type == "cpu" else value.detach().cpu()
