"""Layouts of a recipe over devices: which fit, and which of them should be fastest.

They are ranked by one model of a step: computing at an assumed share of the peak, recomputing
what checkpointing dropped, and bytes over links at the links' speed. It compares layouts; it does
not predict a throughput.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from pydantic import ValidationError

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig, even_tensor
from bc2.plan.communicators import communicator_bytes
from bc2.plan.devices import Device
from bc2.train.algorithm import ModelRole
from bc2.train.memory.estimate import MemoryEstimate, least_segment
from bc2.train.memory.run_memory import ModelShape, adapter_count, estimate_models, trained_names
from bc2.train.memory.shape import TrainingShape
from bc2.train.precision import Precision
from bc2.train.run_config import RunConfig
from bc2.train.speed.step_flops import flops_per_token
from bc2.train.training_settings import check_models

#: The largest micro-batch that is tried, sequences.
MOST_MICRO_BATCH = 64

#: Share of the computing that reductions and gathers of ZeRO can hide behind (`overlap`).
HIDDEN = 0.5


@dataclass(frozen=True)
class Workload:
    """What is trained, and the devices it is trained on."""

    roles: tuple[ModelRole, ...]
    """The models of the run."""
    training: RunConfig
    precision: Precision
    device: Device
    gpus: int
    mfu: float
    """Share of the peak that computing reaches while no device waits."""

    def at(self, gpus: int) -> Workload:
        """The same on another number of devices."""
        return replace(self, gpus=gpus)

    @cached_property
    def model(self) -> ModelConfig:
        """Of what the run makes."""
        return next(role.model for role in self.roles if role.trained)

    @cached_property
    def shapes(self) -> list[ModelShape]:
        """The models, before any layout is chosen."""
        return [
            ModelShape(role.name, self._shape(role), role.trained, role.in_steps)
            for role in self.roles
        ]

    def _shape(self, role: ModelRole) -> TrainingShape:
        training = self.training
        return TrainingShape(
            role.model,
            micro_batch=1,
            sequence_length=training.sequence_length,
            precision=self.precision,
            checkpointing=0,
            device=self.device.kind,
            world=self.gpus,
            optimizer=role.optimizer or training.optimizer,
            trained=trained_names(role),
            adapters=adapter_count(role),
            cut_adapters=adapter_count(role, cut=True),
        )

    def trained_share(self, role: ModelRole) -> float:
        """The share of a model's parameters that is trained."""
        shape = next(each.shape for each in self.shapes if each.name == role.name)
        return shape.trained_params / shape.params

    @property
    def size(self) -> int:
        return 2 if self.precision == "bf16" else 4

    @cached_property
    def token_flops(self) -> int:
        """Model FLOPs of a token of a full sequence, through every model of a step."""
        return flops_per_token(self.roles, self.training.sequence_length)

    @cached_property
    def trained_layer_flops(self) -> int:
        """Those of the layers of trained models, without their heads; frozen ones as others."""
        trained = [role.model for role in self.roles if role.trained and role.in_steps]
        heads = sum(6 * model.head_rows * model.hidden_size for model in trained)
        length = self.training.sequence_length
        return sum(model.flops_per_token(length) for model in trained) - heads

    @cached_property
    def trained_params(self) -> int:
        """Of all models."""
        return sum(each.shape.trained_params for each in self.shapes if each.trained)

    @property
    def compute_s(self) -> float:
        """Seconds a step computes, on all devices together."""
        flops = self.token_flops * self.training.step_tokens
        return flops / (self.gpus * self.device.flops * self.mfu)


@dataclass(frozen=True)
class CandidateLayout:
    """One way to lay a recipe out."""

    work: Workload
    parallel: ParallelConfig
    checkpointing: int
    micro_batch: int
    own: bool = False
    """Whether it is the recipe's own."""

    @property
    def data(self) -> int:
        """Data-parallel ranks, each with its own samples."""
        return self.work.gpus // self.parallel.ranks_of_a_replica

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.work.training.batch_sequences // (self.micro_batch * self.data)

    @cached_property
    def memory(self) -> MemoryEstimate:
        """What one device holds."""
        laid_out: dict[str, Any] = {
            "micro_batch": self.micro_batch,
            "checkpointing": self.checkpointing,
            "accumulated": self.accumulation > 1,
            "parallel": self.parallel,
        }
        return estimate_models(
            [replace(each, shape=replace(each.shape, **laid_out)) for each in self.work.shapes]
        )

    @property
    def communicators(self) -> int:
        """Bytes of NCCL's communicators, which are no tensors."""
        if self.work.device.kind != "cuda":
            return 0
        return communicator_bytes(self.parallel, self.work.gpus)

    @property
    def total(self) -> int:
        """Bytes that one device holds at its peak, communicators included."""
        return self.memory.total + self.communicators

    @property
    def fits(self) -> bool:
        return self.total <= self.work.device.usable

    # -- time -------------------------------------------------------------------------------

    @property
    def recompute(self) -> float:
        """Seconds a step computes again: the layers' forward pass, a third of their work."""
        if not self.checkpointing:
            return 0.0
        # Of trained models alone: of another one nothing is kept.
        share = self.work.trained_layer_flops / self.work.token_flops
        return self.work.compute_s * share / 3

    @cached_property
    def traffic(self) -> dict[str, float]:
        """Bytes that a device sends in a step: by tensor, sequence, data."""
        roles = [role for role in self.work.roles if role.in_steps]
        return {
            "tensor": sum(map(self._tensor_bytes, roles)),
            "sequence": sum(map(self._sequence_bytes, roles)),
            "data": sum(map(self._data_bytes, roles)),
        }

    def _passes(self, role: ModelRole) -> int:
        """Times that a layer's collectives run: forward, backward, and forward again."""
        if not role.trained:
            return 1
        return 3 if self.checkpointing else 2

    def _hidden_bytes(self, model: ModelConfig) -> float:
        """Hidden states of a device's tokens, over all micro-batches of a step."""
        tokens = self.work.training.step_tokens / (self.data * self.parallel.sequence)
        return tokens * model.hidden_size * self.work.size

    def _tensor_bytes(self, role: ModelRole) -> float:
        """Two sums a layer and pass (Megatron-LM, section 3); the embedding's and the head's.

        Only a language head is cut.
        """
        ranks, model = self.parallel.tensor, role.model
        ends = (2 if model.head == "language" else 1) if role.trained else 1
        sums = 2 * self._passes(role) * model.num_layers + ends
        return sums * self._hidden_bytes(model) * 2 * (ranks - 1) / ranks

    def _sequence_bytes(self, role: ModelRole) -> float:
        """All-to-all of Q, K, V and of attention's output (Ulysses)."""
        ranks, model = self.parallel.sequence, role.model
        widths = (model.packed_rows + model.num_heads * model.head_size) / model.hidden_size
        each = widths * self._hidden_bytes(model) / self.parallel.tensor
        return each * self._passes(role) * role.model.num_layers * (ranks - 1) / ranks

    def _data_bytes(self, role: ModelRole) -> float:
        """As DeepSpeed reduces: ZeRO 1 once a step, 2 and 3 every micro-batch; 3 also gathers.

        Frozen parameters are gathered alone, those of a model that is not trained once a
        micro-batch.
        """
        work, ranks = self.work, self.data * self.parallel.sequence
        share = (ranks - 1) / ranks
        weights = work.size * role.model.num_params() / self.parallel.tensor * share
        if not role.trained:
            return weights * self.accumulation if self.parallel.zero == 3 else 0.0
        trained_share = work.trained_share(role)
        trained = weights * trained_share
        if self.parallel.zero == 0:
            return 2 * 4 / work.size * trained
        if self.parallel.zero == 3:
            gathers = 1 if self.parallel.zero_group else 2
            return (gathers + trained_share) * weights * self.accumulation
        reductions = self.accumulation if self.parallel.zero == 2 else 1
        return (2 * reductions + 1) * trained

    def _bandwidth(self, ranks: int) -> float:
        """Bytes/s of the links inside a group of so many neighbouring ranks."""
        device = self.work.device
        return device.near if ranks <= device.machine else device.far

    @cached_property
    def waits(self) -> dict[str, float]:
        """Seconds a step waits for links, by axis of the layout."""
        inner = self.parallel.ranks_of_a_replica
        seconds = {
            "tensor": self.traffic["tensor"] / self._bandwidth(self.parallel.tensor),
            "sequence": self.traffic["sequence"] / self._bandwidth(inner),
            "data": self.traffic["data"] / self._bandwidth(self.work.gpus),
        }
        if self.parallel.zero and self.parallel.overlap:
            seconds["data"] = max(0.0, seconds["data"] - HIDDEN * self.work.compute_s)
        return seconds

    @cached_property
    def slowdown(self) -> float:
        """Time of a step over the time of computing alone."""
        offload = 0.0
        if self.parallel.offload_optimizer:
            # Gradients there and weights back over PCIe, 25 GB/s.
            shared = self.work.trained_params / self.work.gpus
            offload = (4 + self.work.size) * shared / 25e9
        seconds = self.recompute + sum(self.waits.values()) + offload
        return 1 + seconds / self.work.compute_s

    def reason(self) -> str:
        """What its rank among the layouts comes from."""
        reasons = []
        for name, sent in self.traffic.items():
            if sent:
                link = {
                    "tensor": self.parallel.tensor,
                    "sequence": self.parallel.ranks_of_a_replica,
                    "data": self.work.gpus,
                }[name]
                where = "in a machine" if link <= self.work.device.machine else "between machines"
                reasons.append(f"{name} {sent / 1e9:,.1f} GB a step {where}")
        if self.checkpointing:
            again = self.recompute / self.work.compute_s
            every = "layer" if self.checkpointing == 1 else f"{self.checkpointing} layers"
            reasons.append(f"computes every {every} again, {again:.0%}")
        if self.parallel.offload_optimizer:
            reasons.append(f"{self.memory.host / 1e9:,.0f} GB a rank in the host's memory")
        return "; ".join(reasons) or "nothing passes and nothing is computed again"

    @property
    def name(self) -> str:
        """Such as ``tensor=2 data=4 zero=1``."""
        parallel = self.parallel
        words = [f"tensor={parallel.tensor}"] if parallel.tensor > 1 else []
        words += [f"sequence={parallel.sequence}"] if parallel.sequence > 1 else []
        words += [f"data={self.data}", f"zero={parallel.zero}"]
        words += [f"zero_group={parallel.zero_group}"] if parallel.zero_group else []
        words += ["offload_optimizer"] if parallel.offload_optimizer else []
        return " ".join(words)

    def as_json(self) -> dict[str, Any]:
        return {
            "tensor": self.parallel.tensor,
            "sequence": self.parallel.sequence,
            "data": self.data,
            "zero": self.parallel.zero,
            "zero_group": self.parallel.zero_group,
            "offload_optimizer": self.parallel.offload_optimizer,
            "activation_checkpointing": self.checkpointing,
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "own": self.own,
            "fits": self.fits,
            "memory": {
                **self.memory.parts, "communicators": self.communicators, "total": self.total,
            },
            "phase": self.memory.phase,
            "host_memory": self.memory.host,
            "sent_bytes_a_step": self.traffic,
            "recompute_share": self.recompute / self.work.compute_s,
            "relative_time": self.slowdown,
            "reason": self.reason(),
        }  # fmt: skip


def layouts_that_fit(work: Workload, *, offload: bool = False) -> list[CandidateLayout]:
    """The best of each tensor, sequence, zero and group that fits, the fastest first."""
    best: list[CandidateLayout] = []
    for parallel in _parallels(work, offload):
        ways = [way for way in _ways(work, parallel) if way is not None]
        if ways:
            best.append(min(ways, key=_order))
    return sorted(best, key=_order)


def _order(layout: CandidateLayout) -> tuple[float, int, int]:
    # Of equally fast ones the simpler first, then the one that leaves more memory. With offload
    # ZeRO 2 is as simple as 1, which holds gradients of all weights.
    parallel = layout.parallel
    zero = max(2, parallel.zero) if parallel.offload_optimizer else parallel.zero
    return (round(layout.slowdown, 4), zero + parallel.tensor, layout.total)


def possible_layouts(work: Workload) -> Iterator[ParallelConfig]:
    """Every layout that divides evenly over the devices, whether it fits or not."""
    return _parallels(work, offload=False)


def _parallels(work: Workload, offload: bool) -> Iterator[ParallelConfig]:
    inside = min(work.gpus, work.device.machine if work.device.kind == "cuda" else work.gpus)
    each = [even_tensor(role.model, inside) for role in work.roles]
    tensors = sorted(set(each[0]).intersection(*each))
    for tensor, sequence in product(tensors, range(1, inside + 1)):
        for zero, group in ((0, None), (1, None), (2, None), (3, None), (3, work.device.machine)):
            chosen = {
                "tensor": tensor, "sequence": sequence, "zero": zero, "zero_group": group,
                "offload_optimizer": offload,
            }  # fmt: skip
            if group is not None and (group == 1 or work.gpus <= group):
                continue
            if tensor * sequence > inside or (zero and work.gpus == tensor and not offload):
                continue
            found = _checked(work, chosen)
            if found is not None:
                yield found


def _checked(work: Workload, chosen: dict[str, Any]) -> ParallelConfig | None:
    try:
        parallel = ParallelConfig(**chosen)
        check_models(work.roles, parallel, work.gpus, "")
    except (ValidationError, RecipeError):
        return None
    training = work.training
    data = work.gpus // parallel.ranks_of_a_replica
    if training.sequence_length % parallel.sequence or training.batch_sequences % data:
        return None
    return parallel


def _ways(work: Workload, parallel: ParallelConfig) -> Iterator[CandidateLayout | None]:
    least = least_segment_of(work, parallel.tensor)
    for checkpointing in sorted({0, 1, least}):
        yield with_largest_micro_batch(work, parallel, checkpointing)


def least_segment_of(work: Workload, tensor: int) -> int:
    """Layers in a segment of activation checkpointing that hold the least: see `least_segment`.

    Of what the run makes: its segments are those of all models.
    """
    shape = next(each.shape for each in work.shapes if each.trained)
    return least_segment(replace(shape, parallel=ParallelConfig(tensor=tensor)))


def with_largest_micro_batch(
    work: Workload, parallel: ParallelConfig, checkpointing: int
) -> CandidateLayout | None:
    """The layout with the largest micro-batch that fits; None if one sequence does not fit."""
    sequences = work.training.batch_sequences // (work.gpus // parallel.ranks_of_a_replica)
    sizes = range(min(sequences, MOST_MICRO_BATCH), 0, -1)
    for micro_batch in (n for n in sizes if sequences % n == 0):
        layout = CandidateLayout(work, parallel, checkpointing, micro_batch)
        if layout.fits:
            return layout
    return None
