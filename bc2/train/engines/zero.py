"""Where ZeRO keeps this rank's slices of weights, optimizer states and gradients.

DeepSpeed's own helpers (such as `deepspeed.utils.safe_get_local_fp32_param`) know one stage or
another, and gather whole tensors for some; this is one interface to its three optimizers,
without communication. It uses the same internals of DeepSpeed as those helpers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bc2.parallel.sharding import TensorShard
from bc2.parallel.state import StateSource
from bc2.train.optimizer import STEP, Optimizer


@dataclass(frozen=True)
class OwnedSlice:
    """The slice of a flattened parameter whose states this rank has."""

    first: int
    count: int
    weight: Tensor
    """fp32 [count], a view into the optimizer's flattened weights."""
    state: Callable[[str], Tensor]
    """A tensor of the optimizer's state by its name, fp32 [count], a view."""


class Zero(ABC):
    """One of DeepSpeed's three optimizers, which run bc2's `Optimizer` on flattened weights."""

    def __init__(self, zero: Any, optimizer: Optimizer):
        self.zero = zero
        self.optimizer = optimizer

    @abstractmethod
    def run(self, parameter: nn.Parameter) -> OwnedSlice | None:
        """This rank's slice of a parameter; None: other ranks have all of it."""

    @abstractmethod
    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The reduced gradient of that slice, of any type; after a step's last backward pass."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the accumulated gradients."""

    @abstractmethod
    def publish_weights(self) -> None:
        """Copy the fp32 weights to those of the forward pass, on all ranks."""

    @abstractmethod
    def settle(self) -> None:
        """Drop weights that are being gathered beforehand, for modules that were not run."""

    @property
    def flat(self) -> list[Tensor]:
        """What the optimizer updates: this rank's fp32 weights, flattened."""
        return [flat for flat, _ in self._flat_states()]

    def _flat_states(self) -> list[tuple[Tensor, tuple[str, ...]]]:
        """The flattened weights, each with the names of its states. Here one for each group."""
        groups = self.optimizer.inner.param_groups
        pairs = zip(groups, self.optimizer.group_state_names, strict=True)
        return [(flat, names) for group, names in pairs for flat in group["params"]]

    @property
    def stepped(self) -> bool:
        """Whether there are states, which the first update makes."""
        state = self.optimizer.state
        return bool(state) and all(
            name in state[flat] for flat, names in self._flat_states() for name in names
        )

    def step(self) -> Tensor:
        """Updates made, as the optimizer counts them: [1]."""
        return self.optimizer.state[self.flat[0]][STEP].reshape(1)

    def set_step(self, step: Tensor) -> None:
        for flat in self.flat:
            self.optimizer.state[flat][STEP].copy_(step.reshape(()))

    def make_states(self, wanted: bool) -> None:
        """Have states, zeros where there were none; or none."""
        for flat, names in self._flat_states():
            if not wanted:
                self.optimizer.inner.state.pop(flat, None)
            elif any(name not in self.optimizer.state[flat] for name in names):
                step = torch.zeros((), dtype=torch.float32, device=flat.device)
                zeros = {name: torch.zeros_like(flat) for name in names}
                self.optimizer.set_state(flat, {STEP: step, **zeros})


def keep_hooks_uncompiled(layers: nn.Module) -> None:
    """Have compiled layers call DeepSpeed's hooks as they are.

    The compiler would look into the hooks that gather weights, compile some of them for each
    kind of module, give up at its limit, and warn.
    """
    for module in layers.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                hooks[key] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]


def zero_of(engine: Any, optimizer: Optimizer) -> Zero:
    """The ZeRO optimizer of an engine that `deepspeed.initialize` made with `optimizer`."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    zero = engine.optimizer
    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        return PartitionedZero(zero, optimizer)
    if isinstance(zero, BF16_Optimizer):
        return AccumulatingZero(zero, optimizer)
    return BucketedZero(zero, optimizer)


def partition_of(parameter: nn.Parameter) -> tuple[int, int]:
    """Where this rank's piece of a parameter that ZeRO 3 has partitioned begins, and its size."""
    size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    total = parameter.ds_numel  # type: ignore[attr-defined]
    first = size * torch.distributed.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
    return first, max(0, min(size, total - first))


def load_weight(
    parameter: nn.Parameter, name: str, part: TensorShard, weights: StateSource
) -> None:
    """Load a weight that has no fp32 one: all of it, or this rank's piece of what ZeRO 3 parts."""
    if not hasattr(parameter, "ds_tensor"):
        parameter.copy_(weights.read(name, part, 0, parameter.numel()).view_as(parameter))
        return
    first, count = partition_of(parameter)
    read = weights.read(name, part, first if count else 0, count)
    parameter.ds_tensor[:count].copy_(read)
    # The copy within a `zero_group`, made of what was in memory: it is made again.
    parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]


class FlatZero(Zero):
    """Each rank has whole weights, and a piece of each flattened group of fp32 weights."""

    def _groups(self) -> list[list[nn.Parameter]]:
        raise NotImplementedError

    def __init__(self, zero: Any, optimizer: Optimizer):
        super().__init__(zero, optimizer)
        self._flat_of = {
            id(parameter): flat
            for group, flat in zip(self._groups(), self.flat, strict=True)
            for parameter in group
        }

    def run(self, parameter: nn.Parameter) -> OwnedSlice | None:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        state = self.optimizer.state[self._flat_of[id(parameter)]]
        return OwnedSlice(
            there.start,
            there.numel,
            mapping.hp_fragment,
            lambda key: state[key].narrow(0, here.start, here.numel),
        )

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        index = parameter._index_in_param_group  # type: ignore[attr-defined]
        found: Tensor = mapping.get_lp_grad_fragment(index).reshape(-1)
        run = mapping.lp_fragment_address
        return found.narrow(0, run.start, run.numel) if found.numel() > run.numel else found

    def publish_weights(self) -> None:
        self.zero.update_lp_params()

    def settle(self) -> None:
        pass  # Weights are gathered when they are updated, and nothing later.


class BucketedZero(FlatZero):
    """ZeRO 1 and 2 (`DeepSpeedZeroOptimizer`)."""

    def _groups(self) -> list[list[nn.Parameter]]:
        groups: list[list[nn.Parameter]] = self.zero.bit16_groups
        return groups

    def forget(self) -> None:
        self.zero.zero_grad(set_to_none=True)
        for kept in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
            for key in kept:
                kept[key] = None
        # As an update does: or offloaded gradients would be added to those that are dropped here,
        # and a NaN among these would have DeepSpeed leave out the next update.
        self.zero.micro_step_id = -1
        if self.zero.cpu_offload:
            self.zero.reset_cpu_buffers()


class AccumulatingZero(FlatZero):
    """ZeRO 1 in bf16 with fp32 gradients (`BF16_Optimizer`)."""

    def _groups(self) -> list[list[nn.Parameter]]:
        groups: list[list[nn.Parameter]] = self.zero.bf16_groups
        return groups

    def forget(self) -> None:
        self.zero.zero_grad(set_to_none=True)


class PartitionedZero(Zero):
    """ZeRO 3: each rank has a piece of every parameter; the last pieces are padded."""

    def run(self, parameter: nn.Parameter) -> OwnedSlice | None:
        first, count = partition_of(parameter)
        if not count:
            return None
        group, begin, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
        flat = self.zero.fp32_partitioned_groups_flat[group]
        return OwnedSlice(
            first,
            count,
            flat.narrow(0, begin, count),
            lambda key: self.optimizer.state[flat][key].narrow(0, begin, count),
        )

    def _flat_states(self) -> list[tuple[Tensor, tuple[str, ...]]]:
        # A large group is flattened in several pieces, and the groups hold them only in a step.
        names = self.optimizer.group_state_names
        group_of = self.zero.sub_group_to_group_id
        flats = enumerate(self.zero.fp32_partitioned_groups_flat)
        return [(flat, names[group_of[number]]) for number, flat in flats]

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        from deepspeed.utils import safe_get_local_grad

        found: Tensor = safe_get_local_grad(parameter)
        return found

    def forget(self) -> None:
        self.zero.zero_grad(set_to_none=True)
        if not self.zero.offload_optimizer:
            self.zero.averaged_gradients = {}

    def publish_weights(self) -> None:
        for number in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(number)
        self.zero.invalidate_secondary_tensor()
        kept = self.zero.persistent_parameters
        if kept:
            kept[0].partition(kept)
            kept[0].all_gather(kept)

    def settle(self) -> None:
        coordinator = self.zero.parameter_offload.get_param_coordinator()
        coordinator._clean_inflight_param_registry()
