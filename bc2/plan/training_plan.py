"""A recipe's plan: what training it takes, and the layouts that fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bc2.errors import RecipeError, ResourceError, UsageError
from bc2.parallel.parallel_config import divisors
from bc2.plan.candidate_layouts import (
    CandidateLayout,
    Workload,
    layouts_that_fit,
    least_segment_of,
    possible_layouts,
    with_largest_micro_batch,
)
from bc2.plan.devices import DEVICES, Device
from bc2.recipe import Recipe
from bc2.train.duration import Duration
from bc2.train.memory.run_memory import part_trained
from bc2.train.precision import Precision
from bc2.train.run_config import RunConfig, check_batches
from bc2.train.training_settings import TrainingSettings, check_models

#: More than 180 of an A800's 312 TFLOP/s, on 1,024 of them (Baichuan 2, section 2.7).
MFU = 0.577

#: Most devices that are tried when nothing fits.
_MOST_GPUS = 4096


@dataclass(frozen=True)
class Plan:
    """What training a recipe on some devices takes."""

    name: str
    work: Workload
    layouts: list[CandidateLayout]
    """Those that fit, the recipe's own first, then the fastest first."""
    checkpoint_bytes: int
    """Of a checkpoint's tensors."""
    own: CandidateLayout | None
    """The recipe's own, whether it fits or not; None if it does not divide the devices."""
    refused: str | None = None
    """Why the recipe's own layout does not divide them."""

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None if the length is in epochs, of data that a plan does not read."""
        length = Duration.parse(self.work.training.length)
        if length.unit == "epochs":
            return None
        return length.steps(batch_tokens=self.work.training.step_tokens, epoch_tokens=0)

    @property
    def flops_a_step(self) -> int:
        return self.work.token_flops * self.work.training.step_tokens

    @property
    def hours(self) -> float | None:
        """Of training at the assumed MFU, which counts no recomputation."""
        return None if self.steps is None else self.steps * self.work.compute_s / 3600

    @property
    def device_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.work.gpus

    @property
    def cost(self) -> float | None:
        price = self.work.device.price
        hours = self.device_hours
        return None if price is None or hours is None else price * hours

    @cached_property
    def checkpoints(self) -> int | None:
        """How many checkpoints stay on disk; None if that depends on a length that is not known."""
        training = self.work.training
        if training.keep_checkpoints:
            return training.keep_checkpoints
        every = Duration.parse(training.checkpoint_every)
        if self.steps is None or every.unit == "epochs":
            return None
        gap = every.steps(batch_tokens=training.step_tokens, epoch_tokens=0)
        return math.ceil(self.steps / gap)

    @property
    def roles(self) -> list[dict[str, Any]]:
        """The models of the run; none where there is only one, which needs no name."""
        several = self.work.roles if len(self.work.roles) > 1 else ()
        return [
            {"name": each.name, "parameters": each.model.num_params(), "trained": each.trained}
            for each in several
        ]

    def batches(self) -> list[dict[str, int]]:
        """Every solution of batch_tokens = micro_batch x data x accumulation x sequence_length."""
        sequences = self.work.training.batch_sequences
        sizes = {self.work.gpus // p.ranks_of_a_replica for p in possible_layouts(self.work)}
        return [
            {"data": data, "micro_batch": micro, "accumulation": sequences // (data * micro)}
            for data in sorted(sizes, reverse=True)
            if sequences % data == 0
            for micro in divisors(sequences // data)
        ]

    def as_json(self) -> dict[str, Any]:
        work, training, some = self.work, self.work.training, part_trained(self.work.roles)
        return {
            "recipe": self.name,
            "parameters": work.model.num_params(),
            **({} if some is None else {"trained_parameters": some}),
            **({"models": self.roles} if self.roles else {}),
            "precision": work.precision,
            "gpus": work.gpus,
            "device": {
                "name": work.device.name, "memory": work.device.memory,
                "usable": work.device.usable, "flops": work.device.flops,
                "price": work.device.price,
            },
            "batch": {
                "batch_tokens": training.step_tokens,
                "sequence_length": training.sequence_length,
                "rows": training.batch_sequences,
                "solutions": self.batches(),
            },
            "steps": self.steps,
            "flops": {
                "token": work.token_flops,
                "step": self.flops_a_step,
                "run": None if self.steps is None else self.steps * self.flops_a_step,
            },
            "mfu": work.mfu,
            "step_seconds": work.compute_s,
            "hours": self.hours,
            "device_hours": self.device_hours,
            "cost": self.cost,
            "disk": {
                "checkpoint": self.checkpoint_bytes,
                "kept": self.checkpoints,
                "total": None
                if self.checkpoints is None
                else self.checkpoints * self.checkpoint_bytes,
            },
            "own": self.own.as_json() if self.own else None,
            "own_refused": self.refused,
            "layouts": [layout.as_json() for layout in self.layouts],
        }  # fmt: skip


def make_plan(recipe: Recipe, device: Device, gpus: int, mfu: float | None = None) -> Plan:
    """Plan a recipe's training.

    Args:
        gpus: devices, all machines together.
        mfu: share of the peak that training reaches; None: `MFU`.

    Raises:
        UsageError: numbers that make no sense, or devices that no layout divides.
        ResourceError: nothing fits; it names what would.
    """
    settings = TrainingSettings.of(recipe, trains=False)
    work = workload_of(settings, device, gpus, MFU if mfu is None else mfu)
    if not any(True for _ in possible_layouts(work)):
        raise _indivisible(work)
    own, refused = _own(settings, work)
    found = layouts_that_fit(work)
    if own and own.fits:
        found = [own, *(layout for layout in found if not _alike(layout, own))]
    if not found:
        raise nothing_fits(work, own)
    return Plan(recipe.name, work, found, settings.checkpoint_bytes, own, refused)


def _own(settings: TrainingSettings, work: Workload) -> tuple[CandidateLayout | None, str | None]:
    """The recipe's layout; or why so many devices cannot have it."""
    try:
        return recipe_candidate(settings, work), None
    except RecipeError as error:
        return None, str(error)


def _alike(one: CandidateLayout, other: CandidateLayout) -> bool:
    def key(layout: CandidateLayout) -> tuple[object, ...]:
        return layout.parallel, layout.checkpointing, layout.micro_batch

    return key(one) == key(other)


def workload_of(
    settings: TrainingSettings, device: Device, gpus: int, mfu: float = MFU
) -> Workload:
    """What a recipe asks for, on so many devices.

    Raises:
        UsageError: no devices, or an MFU outside of 0 to 1.
    """
    if gpus < 1:
        raise UsageError(f"--gpus {gpus} is too few", todo="give at least 1")
    if not 0 < mfu <= 1:
        raise UsageError(f"--mfu {mfu:g} is no share of the peak", todo="give 0 to 1, e.g. 0.4")
    training = settings.training
    return Workload(settings.models, training, _precision(training, device), device, gpus, mfu)


def _precision(training: RunConfig, device: Device) -> Precision:
    if device.kind == "cpu":
        import torch

        from bc2.train.device import pick_precision

        return pick_precision(training.precision, torch.device("cpu"))
    return "fp32" if training.precision == "fp32" else "bf16"


def recipe_candidate(settings: TrainingSettings, work: Workload) -> CandidateLayout:
    """The recipe's own layout; "auto" is what the run itself would choose.

    Raises:
        RecipeError: a size does not divide evenly.
    """
    parallel = settings.parallel
    training = work.training
    check_models(work.roles, parallel, work.gpus, settings.recipe.where(("parallel",)))
    if training.micro_batch != "auto":
        check_batches(training, parallel, work.gpus)
    chosen = training.activation_checkpointing
    layers = least_segment_of(work, parallel.tensor) if chosen == "auto" else chosen
    micro_batch = training.micro_batch
    if micro_batch == "auto":
        largest = with_largest_micro_batch(work, parallel, layers)
        micro_batch = largest.micro_batch if largest else 1
    return CandidateLayout(work, parallel, layers, micro_batch, own=True)


def _indivisible(work: Workload) -> UsageError:
    """The error of a number of devices over which no layout divides the batch and the model."""
    near = range(max(1, work.gpus // 2), 2 * work.gpus + 1)
    fit = [n for n in near if any(True for _ in possible_layouts(work.at(n)))]
    fit.sort(key=lambda n: abs(n - work.gpus))
    heads = " and ".join(sorted({str(role.model.kv_heads) for role in work.roles}))
    return UsageError(
        f"{work.gpus} devices cannot share a step of {work.training.batch_sequences} "
        f"sequences, nor {heads} heads, evenly",
        where="--gpus",
        todo=f"take {', '.join(map(str, sorted(fit[:4])))}",
    )


def nothing_fits(
    work: Workload, own: CandidateLayout | None, available: float | None = None
) -> ResourceError:
    """The error when nothing fits, with what would fit."""
    room = work.device.usable if available is None else available
    taken = f"{_memory_text(own)}, and " if own else ""
    return ResourceError(
        f"{taken}{room / 1e9:,.1f} GB of each of {work.gpus} can be used; "
        f"no {'other ' if own else ''}layout of {work.gpus} fits{' either' if own else ''}",
        where=f"{work.gpus} x {work.device.name}",
        todo="; or ".join(ways_out(work)) or "train a smaller model",
    )


def _memory_text(own: CandidateLayout) -> str:
    return (
        f"{own.name} micro_batch={own.micro_batch} activation_checkpointing={own.checkpointing} "
        f"takes {own.total / 1e9:,.1f} GB ({_largest_parts(own)})"
    )


def _largest_parts(layout: CandidateLayout) -> str:
    parts = sorted(layout.memory.parts.items(), key=lambda part: -part[1])[:3]
    return ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in parts)


def ways_out(work: Workload) -> list[str]:
    """What would fit instead, the smallest change first."""
    ways = [_more_devices(work), _offloaded(work), _larger(work)]
    return [way for way in ways if way]


def _more_devices(work: Workload) -> str:
    gpus = work.gpus
    if work.device.kind == "cpu":
        return ""
    while (gpus := gpus * 2) <= _MOST_GPUS:
        found = layouts_that_fit(work.at(gpus))
        if found:
            return f"take {gpus} devices: {_layout_text(found[0])}"
    return ""


def _offloaded(work: Workload) -> str:
    found = layouts_that_fit(work, offload=True) if work.device.kind == "cuda" else []
    if not found:
        return ""
    host = found[0].memory.host * min(work.gpus, work.device.machine) / 1e9
    return f"offload: {_layout_text(found[0])} with {host:,.0f} GB of host memory a machine"


def _larger(work: Workload) -> str:
    for device in sorted(DEVICES.values(), key=lambda device: device.memory):
        if work.device.kind == "cuda" and device.memory > work.device.memory:
            found = layouts_that_fit(replace(work, device=device))
            if found:
                return f"take {device.name}: {_layout_text(found[0])}"
    return ""


def _layout_text(layout: CandidateLayout) -> str:
    return (
        f"{layout.name} micro_batch={layout.micro_batch} "
        f"activation_checkpointing={layout.checkpointing} "
        f"({layout.total / 1e9:,.1f} GB each)"
    )
