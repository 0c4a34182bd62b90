"""Whether a run can fit into the memory of this machine, before it starts."""

from __future__ import annotations

import torch

from bc2.errors import ResourceError, UsageError
from bc2.free_memory import device_available, gpus_available
from bc2.plan.candidate_layouts import CandidateLayout, layouts_that_fit
from bc2.plan.devices import Device
from bc2.plan.training_plan import nothing_fits, recipe_candidate, workload_of
from bc2.ranks import name_launcher, place
from bc2.train.device import check_gpus_for, pick_device, rank_device
from bc2.train.training_settings import TrainingSettings

#: A run is refused if its estimate is more than this times what is free: estimates err by less.
CLEAR = 1.15


def check_memory_fits(
    settings: TrainingSettings,
    world: int,
    nproc: int | None = None,
    available: int | None = None,
) -> None:
    """Refuse a run whose estimate is clearly more than what is free.

    Of a micro-batch of "auto" one sequence must fit: the search for it comes after all inputs
    are made.

    Args:
        world: ranks of the run.
        nproc: ranks that this process is going to start on this machine; None: it trains
            itself, alone or as one of several.
        available: bytes free for this rank; looked up if None.

    Raises:
        ResourceError: it cannot fit; the error names a layout that would.
        UsageError: there is no such device, or not one for each rank.
    """
    wanted = settings.training.device
    if nproc is not None:
        check_gpus_for(wanted, nproc)
    device = rank_device(wanted) if nproc is None else pick_device(wanted)
    local = nproc or place().local_world or world
    room = _room(device, local, starts=nproc is not None) if available is None else available
    # The speeds only rank layouts: those of an ordinary device will do.
    here = Device(device.type, device.type, room, 312e12, 300e9, 25e9, local)
    try:
        own = recipe_candidate(settings, workload_of(settings, here, world))
    except UsageError:
        return  # the run itself refuses what does not divide
    if own.total > room * CLEAR:
        with name_launcher(world):
            raise _refusal(own, room)


def _room(device: torch.device, local: int, *, starts: bool) -> int:
    """Bytes free for one of the ranks of this machine; on GPUs, where the least is.

    Args:
        starts: this process starts the ranks, and is none itself.
    """
    if device.type == "cpu":
        return device_available(device) // local
    if starts:
        return min(gpus_available(range(local) if local > 1 else [device.index]))
    return device_available(device)


def _refusal(own: CandidateLayout, room: int) -> ResourceError:
    others = layouts_that_fit(own.work)
    if not others:
        return nothing_fits(own.work, own, room)
    best = others[0]
    parallel = best.parallel.model_dump(exclude_defaults=True)
    options = [f"--set parallel.{name}={value}" for name, value in parallel.items()]
    section = own.work.training.section
    options.append(f"--set {section}.micro_batch={best.micro_batch}")
    options.append(f"--set {section}.activation_checkpointing={best.checkpointing}")
    return ResourceError(
        f"this takes {own.total / 1e9:,.2f} GB on a rank, and {room / 1e9:,.2f} GB is free",
        where=f"{own.name} micro_batch={own.micro_batch}",
        todo=f"{' '.join(options)} would take {best.total / 1e9:,.2f} GB; see `bc2 plan`",
    )
