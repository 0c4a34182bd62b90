"""The GPU of a rank: it is the current one, and no other rank has it."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from bc2.errors import UsageError
from bc2.parallel.rank_store import spans
from bc2.process.launcher_variables import Place

#: How long rank 0 waits before it fails, seconds.
READ_S = 1.0


def make_current(device: torch.device) -> None:
    """Make a GPU the current one of this thread; nothing happens for a CPU.

    To be called before the first collective: NCCL sends objects by way of the current GPU,
    which is number 0 on every rank unless it is set.

    Args:
        device: a GPU with its index.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def check_own_gpu(store: Any, device: torch.device, here: Place) -> None:
    """Check that no two ranks have the same GPU, before NCCL breaks a collective over it.

    Args:
        store: the one where all ranks have met. Each waits in it for the others.

    Raises:
        UsageError: some have; on every rank.
    """
    gpus = dist.PrefixStore(f"bc2/{here.restarts}/gpu", store)  # type: ignore[attr-defined]
    about = torch.cuda.get_device_properties(device)
    gpus.set(str(here.rank), f"{about.name}, {about.uuid}")
    found = gpus.multi_get([str(rank) for rank in range(here.world)])
    holders: dict[str, list[int]] = {}
    for rank, gpu in enumerate(found):
        holders.setdefault(gpu.decode(), []).append(rank)
    shared = next((gpu for gpu, ranks in holders.items() if len(ranks) > 1), None)
    if shared is not None:
        # The store may end with rank 0: the others have time to read the same.
        time.sleep(READ_S if here.rank == 0 else 0.0)
        raise UsageError(
            f"{spans(holders[shared])} have the same GPU ({shared}); each needs its own",
            todo="start no more ranks on a machine than it has GPUs, with device = auto, and see "
            "that the launcher sets LOCAL_RANK or lets each rank see its own GPU alone",
        )
