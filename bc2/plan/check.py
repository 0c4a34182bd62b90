"""Before training starts: can it fit here?"""

from __future__ import annotations

import os

import torch

from bc2.errors import ResourceError, UsageError
from bc2.plan.candidate_layouts import CandidateLayout, layouts_that_fit
from bc2.plan.devices import Device
from bc2.plan.training_plan import nothing_fits, recipe_candidate, workload_of
from bc2.train.device import pick_device
from bc2.train.memory.available import device_available
from bc2.train.training_settings import TrainingSettings

#: An estimate this much above what is free cannot be right by luck.
CLEAR = 1.15


def check_memory_fits(
    settings: TrainingSettings,
    world: int,
    nproc: int | None = None,
    available: int | None = None,
) -> None:
    """Stop what cannot fit by a clear margin, before anything is trained.

    Args:
        world: ranks of the run.
        nproc: ranks of this machine; as the launcher says if None.
        available: bytes free for this rank; looked up if None.

    Raises:
        ResourceError: it cannot; it names a layout that would.
    """
    training = settings.pretrain
    if training.micro_batch == "auto":
        return  # searched for with what is free, and refused there
    device = pick_device(training.device)
    local = nproc or int(os.environ.get("LOCAL_WORLD_SIZE", world))
    room = _room(device, local) if available is None else available
    # Speeds rank layouts; an ordinary device's will do.
    here = Device(str(device), device.type, room, 312e12, 300e9, 25e9, local)
    try:
        own = recipe_candidate(settings, workload_of(settings, here, world))
    except UsageError:
        return  # what does not divide, the run itself refuses
    if own.memory.total > room * CLEAR:
        raise _refusal(own, room)


def _room(device: torch.device, local: int) -> int:
    """Bytes free for one of the ranks of this machine."""
    free = device_available(device)
    return free // local if device.type == "cpu" else free


def _refusal(own: CandidateLayout, room: int) -> ResourceError:
    others = layouts_that_fit(own.work)
    if not others:
        return nothing_fits(own.work, own, room)
    best = others[0]
    parallel = best.parallel.model_dump(exclude_defaults=True)
    said = [f"--set parallel.{name}={value}" for name, value in parallel.items()]
    said.append(f"--set pretrain.micro_batch={best.micro_batch}")
    said.append(f"--set pretrain.activation_checkpointing={best.checkpointing}")
    return ResourceError(
        f"this takes {own.memory.total / 1e9:,.2f} GB on a rank, and {room / 1e9:,.2f} GB is free",
        where=f"{own.name} micro_batch={own.micro_batch}",
        todo=f"{' '.join(said)} would take {best.memory.total / 1e9:,.2f} GB; see `bc2 plan`",
    )
