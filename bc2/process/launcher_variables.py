"""The variables by which launchers tell a process which rank of a run it is.

torchrun, the deepspeed launcher, Kubeflow and `bc2 --nproc` set WORLD_SIZE and RANK, srun sets
SLURM_STEP_NUM_TASKS and SLURM_PROCID. They also surround processes that are no ranks: the shell
of an interactive step or of a pod. So `bc2` sets them aside when it starts, and a command that
runs as a rank takes them back (`take_part`): no other command, library or child process sees them.

An empty variable counts as one that is not set.

bc2 itself sets BC2_LOCAL_RANK, where LOCAL_RANK has come to say which GPU a library shall take:
see `bc2.ranks.export_gpu`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bc2.errors import UsageError

#: The first of each that is set says it.
_WORLD = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANK = ("RANK", "SLURM_PROCID")
_LOCAL = ("BC2_LOCAL_RANK", "LOCAL_RANK", "SLURM_LOCALID")
_LOCAL_WORLD = "LOCAL_WORLD_SIZE"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"

#: What else launchers say of a process. Settings of theirs are not among it.
_TOLD = (
    *_WORLD, *_RANK, *_LOCAL, _LOCAL_WORLD, _RESTARTS,
    "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE",
)  # fmt: skip

#: mpirun's, which nothing here reads: DeepSpeed would, and stumble over them.
_MPI = tuple(f"OMPI_COMM_WORLD_{what}" for what in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))

_aside: dict[str, str] = {}


@dataclass(frozen=True)
class Place:
    """Which rank of how many a process is."""

    world: int = 1
    rank: int = 0
    local: int = 0
    """Its number among the ranks of its machine."""
    local_world: int | None = None
    """Ranks of its machine, where the launcher says it."""
    restarts: int = 0
    """How often the launcher has started the ranks again."""
    said_by: str = ""
    """The variables that say so, with their values; empty if none does."""
    alone: str = ""
    """How to run without them."""


@contextmanager
def set_aside() -> Iterator[None]:
    """Take the launcher's variables out of the environment: this process is no rank as yet.

    After the block they are back, for a program that calls several commands.
    """
    _aside.clear()
    for name in (*_TOLD, *_MPI):
        if name in os.environ:
            _aside[name] = os.environ.pop(name)
    try:
        yield
    finally:
        for name, text in _aside.items():
            os.environ.setdefault(name, text)


def take_part() -> None:
    """Be the rank that the launcher's variables say, if they say one.

    Raises:
        UsageError: they contradict each other, or are no numbers.
    """
    if read_place(_aside).said_by:
        back = {name: text for name, text in _aside.items() if text and name not in _MPI}
        os.environ.update(back)


def refuse_ranks(command: str) -> None:
    """Refuse to be one of several ranks, for a command that starts its own.

    Raises:
        UsageError: the launcher's variables say that it is one, or are wrong.
    """
    place = read_place(_aside)
    if place.world > 1:
        raise UsageError(
            f"this is one of {place.world} ranks ({place.said_by}), and {command} starts its own",
            todo=f"start it by hand, with --nproc; {place.alone}",
        )


def read_place(variables: Mapping[str, str]) -> Place:
    """What launchers say in an environment.

    SLURM_PROCID alone says nothing, since a batch script has it too; neither does LOCAL_RANK.

    Raises:
        UsageError: a variable is wrong, or one that it needs is not set. It names them.
    """
    world = _first(variables, _WORLD)
    rank = _first(variables, _RANK) if world or variables.get("RANK") else None
    if world is None and rank is None:
        return Place()
    alone = _alone(variables)
    if world is None:
        raise UsageError(
            f"{rank}={variables[rank or '']} is set, and WORLD_SIZE is not",
            todo=f"set both, or none: {alone}",
        )
    size = _number(variables, world, 1, None)
    if rank is None and size > 1:
        raise UsageError(
            f"{world}={variables[world]} is set, and RANK is not",
            todo=f"set both, or none: {alone}",
        )
    local_world = _LOCAL_WORLD if variables.get(_LOCAL_WORLD) else None
    local = _first(variables, _LOCAL)
    here = _number(variables, local_world, 1, size, world) if local_world else None
    return Place(
        size,
        _number(variables, rank, 0, size - 1, world) if rank else 0,
        _number(variables, local, 0, (here or size) - 1, local_world or world) if local else 0,
        here,
        _number(variables, _RESTARTS, 0, None) if variables.get(_RESTARTS) else 0,
        ", ".join(f"{name}={variables[name]}" for name in (world, rank) if name),
        alone,
    )


def rendezvous_address(variables: Mapping[str, str]) -> tuple[str, int]:
    """The host and port at which the ranks of a run meet.

    Raises:
        UsageError: the launcher does not say it.
    """
    place = read_place(variables)
    host, port = variables.get("MASTER_ADDR"), variables.get("MASTER_PORT")
    missing = [name for name, text in (("MASTER_ADDR", host), ("MASTER_PORT", port)) if not text]
    if not host or not port:
        are = "are" if len(missing) > 1 else "is"
        raise UsageError(
            f"this is rank {place.rank} of {place.world} ({place.said_by}), and where they meet "
            f"is unknown: {' and '.join(missing)} {are} not set",
            todo=f"set MASTER_ADDR to the machine of rank 0 and MASTER_PORT to a free port there, "
            f"the same on all ranks; {place.alone}",
        )
    return host, _number(variables, "MASTER_PORT", 1, (1 << 16) - 1)


def _first(variables: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The first of some variables that is set."""
    return next((name for name in names if variables.get(name)), None)


def _number(
    variables: Mapping[str, str], name: str, least: int, most: int | None, of: str | None = None
) -> int:
    """The number that a variable holds; `of`: the variable that `most` comes from."""
    text = variables[name].strip()
    # int() would take "1_0" and "٣" too, and fail at 5,000 digits.
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if number < least or (most is not None and number > most):
        wanted = f"from {least} to {most}" if most is not None else f"of {least} or more"
        wanted += f" ({of}={variables[of]})" if of else ""
        raise UsageError(
            f"the environment variable {name} is {variables[name]!r}, not a whole number {wanted}",
            todo=f"a launcher sets it for each rank; {_alone(variables)}",
        )
    return number


def _alone(variables: Mapping[str, str]) -> str:
    """How to run without being a rank."""
    names = [name for name in (*_WORLD, "RANK") if name in variables]
    slurm = ", or in a step of its own: srun --ntasks=1" if _WORLD[1] in names else ""
    return f"to run it alone: env {' '.join(f'-u {name}' for name in names)} bc2 ...{slurm}"
