"""Ranks and their groups: which part of the model, the tokens and the data each works on.

A rank has three coordinates. Ranks that differ in `tensor` alone share one model's matrices,
those that differ in `sequence` alone share a micro-batch's tokens, and those that differ in
`data` alone work on other samples with the same part of the model. The ranks of the latter two
kinds together are the `replicas` of a part: gradients are summed over them, and ZeRO partitions
states over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bc2.errors import RecipeError, RunFailed
from bc2.parallel.layout import ORDER, Axis
from bc2.parallel.own_device import check_own_gpu, make_current
from bc2.parallel.rank_store import join_store, run_aside
from bc2.ranks import RENDEZVOUS_TIMEOUT_S, follow_srun, world_size

if TYPE_CHECKING:
    from bc2.parallel.parallel_config import ParallelConfig

T = TypeVar("T")

#: How long a collective may wait for a rank, by default, seconds.
TIMEOUT_S = 1800.0

_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


@dataclass(frozen=True)
class Group:
    """Some ranks and their collectives; with a single rank these do nothing."""

    ranks: tuple[int, ...] = (0,)
    rank: int = 0
    """This rank's place among them."""
    handle: Any = None
    """torch's process group; None where there is one rank."""

    @property
    def size(self) -> int:
        return len(self.ranks)

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        """The sum, "max" or "min" over the group, in place."""
        if self.size > 1:
            dist.all_reduce(x, _REDUCTIONS[op], group=self.handle)
        return x

    def broadcast_object(self, value: T) -> T:
        """The value of the group's first rank; any object that can be pickled."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.ranks[0], group=self.handle)
        return box[0]

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """The tensors of all ranks, concatenated along `dim` in the order of ranks."""
        if self.size == 1:
            return x
        found = [torch.empty_like(x) for _ in self.ranks]
        dist.all_gather(found, x, group=self.handle)
        return torch.cat(found, dim)

    def broadcast(self, x: Tensor) -> Tensor:
        """The tensor of the group's first rank, in place."""
        if self.size > 1:
            dist.broadcast(x, src=self.ranks[0], group=self.handle)
        return x

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all ranks, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.handle)
        return found


@dataclass(frozen=True)
class Mesh:
    """All ranks of a run, as one of them sees them."""

    world: Group = field(default_factory=Group)
    tensor: Group = field(default_factory=Group)
    sequence: Group = field(default_factory=Group)
    data: Group = field(default_factory=Group)
    replicas: Group = field(default_factory=Group)
    """Ranks with the same part of the model: `sequence` times `data`."""
    side: Group = field(default_factory=Group)
    """All ranks once more, over gloo, for a thread that runs beside the training."""
    timeout: timedelta = timedelta(seconds=TIMEOUT_S)
    """How long a collective of any group may wait for a rank."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that logs and publishes for all."""
        return self.world.rank == 0


def make_mesh(config: ParallelConfig, device: torch.device, timeout_s: float = TIMEOUT_S) -> Mesh:
    """Join the other ranks. Called once, by every rank.

    Args:
        device: this rank's, of a GPU with its index; it becomes the current one.
        timeout_s: how long a collective of any group may wait for a rank.

    Raises:
        RecipeError: the ranks do not fit the layout.
    """
    make_current(device)
    timeout = timedelta(seconds=timeout_s)
    world = world_size()
    if world == 1:
        if config.ranks_of_a_replica > 1:
            raise RecipeError(
                f"[parallel] asks for a multiple of {config.ranks_of_a_replica} ranks; this is one",
                todo=f"start it with --nproc {config.ranks_of_a_replica}",
            )
        return _one_rank_mesh(device, timeout) if config.on(1).zero else Mesh(timeout=timeout)
    everyone = all_ranks(device, timeout_s)
    # Before groups are made: ranks with different layouts would wait for each other there.
    check_same_on_all_ranks(everyone, "[parallel]", config.model_dump(mode="json"))
    return _groups(config, world, timeout)


def all_ranks(
    device: torch.device, timeout_s: float = TIMEOUT_S, *, wait_s: float = RENDEZVOUS_TIMEOUT_S
) -> Group:
    """Every rank of the run, whatever the layout. The first call waits for all ranks to call it.

    Args:
        device: this rank's, of a GPU with its index; it becomes the current one.
        timeout_s: how long a collective may wait for a rank.
        wait_s: how long the first call waits for all ranks to come.

    Raises:
        UsageError: the environment does not say where they meet; or two have the same GPU.
        RunFailed: they did not come, or cannot communicate.
    """
    make_current(device)
    world = world_size()
    if world == 1:
        return Group()
    if not dist.is_initialized():
        _open_group(device, timedelta(seconds=timeout_s), wait_s)
    return Group(tuple(range(world)), dist.get_rank(), dist.group.WORLD)


def _open_group(device: torch.device, timeout: timedelta, wait_s: float) -> None:
    here, backend = follow_srun(), _backend(device)
    store = join_store(wait_s)
    store.set_timeout(timeout)
    if backend == "nccl":
        check_own_gpu(store, device, here)
    opening = partial(
        dist.init_process_group, backend, timeout=timeout, rank=here.rank, world_size=here.world,
        store=dist.PrefixStore("default_pg", store),  # type: ignore[attr-defined]
    )  # fmt: skip
    try:
        # NCCL connects at the first collective; gloo does here, and may lose a rank meanwhile.
        run_aside(opening) if backend == "gloo" else opening()
    except RuntimeError as error:
        raise RunFailed(
            f"rank {here.rank} cannot communicate with the others: {str(error).splitlines()[0]}",
            todo="see what the rank that failed first said, and start all again",
        ) from error


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def _one_rank_mesh(device: torch.device, timeout: timedelta) -> Mesh:
    """A single rank with a process group, which DeepSpeed needs."""
    if not dist.is_initialized():
        dist.init_process_group(
            _backend(device), timeout=timeout, rank=0, world_size=1,
            store=dist.HashStore(),  # type: ignore[attr-defined]
        )  # fmt: skip
    return Mesh(replicas=Group(handle=dist.group.WORLD), timeout=timeout)


def _groups(config: ParallelConfig, world: int, timeout: timedelta) -> Mesh:
    # Without a limit of their own, groups would have torch's: ten minutes with NCCL.
    new_group = partial(dist.new_group, timeout=timeout)
    everyone = tuple(range(world))
    me = dist.get_rank()
    found: dict[str, Group] = {}
    for name, groups in group_ranks(config, world).items():
        # Every rank must make every group, also those it is not in, in the same order.
        for ranks in groups:
            # DeepSpeed needs a group of replicas even where there is one.
            needed = len(ranks) > 1 or name == "replicas"
            handle = new_group(ranks) if needed and len(ranks) < world else dist.group.WORLD
            if me in ranks:
                found[name] = Group(ranks, ranks.index(me), handle if needed else None)
    side = Group(everyone, me, new_group(everyone, backend="gloo"))
    world_group = Group(everyone, me, dist.group.WORLD)
    return Mesh(world=world_group, side=side, timeout=timeout, **found)


#: The coordinates that the ranks of a group have in common.
_SHARED: dict[str, tuple[Axis, ...]] = {
    "tensor": ("sequence", "data"),
    "sequence": ("tensor", "data"),
    "data": ("tensor", "sequence"),
    "replicas": ("tensor",),
}


def group_ranks(config: ParallelConfig, world: int) -> dict[str, list[tuple[int, ...]]]:
    """The groups of each kind, their ranks ascending. Every rank is in one group of each kind."""
    places = [coordinates(config, world, rank) for rank in range(world)]
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, same in _SHARED.items():
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank, place in enumerate(places):
            groups.setdefault(tuple(place[axis] for axis in same), []).append(rank)
        found[name] = [tuple(groups[key]) for key in sorted(groups)]
    return found


def coordinates(config: ParallelConfig, world: int, rank: int) -> dict[str, int]:
    """The coordinates of a rank: tensor, sequence, data."""
    sizes = {
        "tensor": config.tensor,
        "sequence": config.sequence,
        "data": world // config.ranks_of_a_replica,
    }
    place = {}
    for axis in config.order:
        rank, place[axis] = divmod(rank, sizes[axis])
    return {axis: place[axis] for axis in ORDER}


def _first_difference(one: Any, two: Any) -> tuple[str, str]:
    """Two different values as text; of two dictionaries, the first entry that differs."""
    if isinstance(one, dict) and isinstance(two, dict):
        name = next(name for name in {**one, **two} if one.get(name) != two.get(name))
        return f"{name} = {one.get(name)!r}", repr(two.get(name))
    return repr(one), repr(two)


def check_same_on_all_ranks(group: Group, what: str, value: Any) -> None:
    """Check that all ranks have the same value of something that is called `what`.

    Raises:
        RecipeError: they do not, on every rank; it names the ranks that differ from the first.
    """
    values: Sequence[Any] = group.all_gather_object(value)
    others = [str(rank) for rank, there in enumerate(values) if there != values[0]]
    if others:
        there, here = _first_difference(values[int(others[0])], values[0])
        raise RecipeError(
            f"rank {', '.join(others)} has another {what} than rank 0: {there} and {here}",
            todo="start all ranks with the same command, recipe and version of bc2",
        )


def _call(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return function(*arguments)


#: ``function(*arguments)``, outside of compiled graphs: a compiler could reorder collectives.
call_uncompiled: Callable[..., Tensor] = torch.compiler.disable(_call)  # type: ignore[no-untyped-call]
