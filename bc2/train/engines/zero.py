"""Where ZeRO keeps what: this rank's runs of weights, moments and gradients.

DeepSpeed's own helpers (`deepspeed.utils.safe_get_local_fp32_param` and its kin) say it for
one stage or another, gathering whole tensors for some; here it is one vocabulary for its
three optimizers, without communication. What is used of DeepSpeed is what those helpers use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OwnedSlice:
    """The run of a flattened parameter whose states this rank has."""

    first: int
    count: int
    weight: Tensor
    """fp32 [count], a view: what is written to it is the optimizer's."""
    moment: Callable[[str], Tensor]
    """exp_avg or exp_avg_sq, fp32 [count], a view."""


class Zero(ABC):
    """One of DeepSpeed's optimizers, over torch's AdamW."""

    def __init__(self, optimizer: Any):
        self.zero = optimizer
        self.adamw: torch.optim.AdamW = optimizer.optimizer

    @abstractmethod
    def run(self, parameter: nn.Parameter) -> OwnedSlice | None:
        """None: other ranks have all of it."""

    @abstractmethod
    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The reduced gradient of `run`, any type; after the last backward pass of a step."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what was accumulated."""

    @abstractmethod
    def publish_weights(self) -> None:
        """Copy fp32 weights to those of the forward pass, of all ranks."""

    @property
    def flat(self) -> list[Tensor]:
        """What AdamW updates: this rank's fp32 weights, flattened by group."""
        return [p for group in self.adamw.param_groups for p in group["params"]]

    @property
    def stepped(self) -> bool:
        """Whether there are moments."""
        return bool(self.adamw.state) and all("exp_avg" in self.adamw.state[p] for p in self.flat)

    def step(self) -> Tensor:
        """Updates made, as AdamW counts them."""
        found: Tensor = self.adamw.state[self.flat[0]]["step"]
        return found.reshape(1)

    def set_step(self, step: Tensor) -> None:
        for flat in self.flat:
            self.adamw.state[flat]["step"].copy_(step.reshape(()))

    def make_moments(self, wanted: bool) -> None:
        """Have moments, zeros where there were none; or none."""
        for flat in self.flat:
            if not wanted:
                self.adamw.state.pop(flat, None)
            elif "exp_avg" not in self.adamw.state[flat]:
                self.adamw.state[flat].update(
                    step=torch.zeros((), dtype=torch.float32, device=flat.device),
                    exp_avg=torch.zeros_like(flat),
                    exp_avg_sq=torch.zeros_like(flat),
                )


def zero_of(engine: Any) -> Zero:
    """Of an engine that `deepspeed.initialize` made."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        return Parted(engine.optimizer)
    if isinstance(engine.optimizer, BF16_Optimizer):
        return Accumulated(engine.optimizer)
    return Bucketed(engine.optimizer)


class FlatZero(Zero):
    """Weights are whole; of fp32 weights each rank has a piece of the flattened group."""

    def _groups(self) -> list[list[nn.Parameter]]:
        raise NotImplementedError

    def __init__(self, optimizer: Any):
        super().__init__(optimizer)
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
        state = self.adamw.state[self._flat_of[id(parameter)]]
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


class Bucketed(FlatZero):
    """ZeRO 1 and 2 (`DeepSpeedZeroOptimizer`)."""

    def _groups(self) -> list[list[nn.Parameter]]:
        groups: list[list[nn.Parameter]] = self.zero.bit16_groups
        return groups

    def forget(self) -> None:
        self.zero.zero_grad(set_to_none=True)
        for kept in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
            for key in kept:
                kept[key] = None


class Accumulated(FlatZero):
    """ZeRO 1 in bf16 with fp32 gradients (`BF16_Optimizer`)."""

    def _groups(self) -> list[list[nn.Parameter]]:
        groups: list[list[nn.Parameter]] = self.zero.bf16_groups
        return groups

    def forget(self) -> None:
        self.zero.zero_grad(set_to_none=True)


class Parted(Zero):
    """ZeRO 3: of every parameter each rank has a piece, the last ones padded."""

    def run(self, parameter: nn.Parameter) -> OwnedSlice | None:
        size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        total = parameter.ds_numel  # type: ignore[attr-defined]
        first = size * torch.distributed.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
        count = max(0, min(size, total - first))
        if not count:
            return None
        group, begin, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
        flat = self.zero.fp32_partitioned_groups_flat[group]
        return OwnedSlice(
            first,
            count,
            flat.narrow(0, begin, count),
            lambda key: self.adamw.state[flat][key].narrow(0, begin, count),
        )

    @property
    def flat(self) -> list[Tensor]:
        found: list[Tensor] = self.zero.fp32_partitioned_groups_flat
        return found

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
