"""What NCCL's communicators take of a GPU, beside what torch allocates.

All of it is an estimate from NCCL's sources, not measured. NCCL connects lazily (2.22 and later):
a communicator has buffers from its first collective on, for the algorithm that it takes.
"""

from __future__ import annotations

from bc2.parallel.parallel_config import ParallelConfig

#: Bytes that a rank receives into, for each channel: one buffer for each protocol (LL, LL128 and
#: Simple: NCCL_LL_BUFF_SIZE, NCCL_LL128_BUFF_SIZE in `device.h`, NCCL_BUFFSIZE).
CHANNEL = (512 << 10) + 640 * 120 * 8 * 8 + (4 << 20)

#: Channels of a ring where GPUs are joined by NVLink; fewer over PCIe.
CHANNELS = 24

#: Bytes of a communicator.
COMMUNICATOR = CHANNELS * CHANNEL


def communicators(parallel: ParallelConfig, gpus: int) -> list[str]:
    """The communicators of a rank, by what they are for: see `bc2.parallel.mesh`.

    A group of all ranks is the world's own; a group of one has none.
    """
    if gpus == 1:
        return []
    replicas = gpus // parallel.tensor
    sizes = {
        "tensor": parallel.tensor,
        "sequence": parallel.sequence,
        "data": replicas // parallel.sequence,
        "replicas": replicas,
        "zero_group": parallel.zero_group or 1,
    }
    return ["world", *(name for name, size in sizes.items() if 1 < size < gpus)]


def communicator_bytes(parallel: ParallelConfig, gpus: int) -> int:
    """Bytes of all communicators of a rank."""
    return COMMUNICATOR * len(communicators(parallel, gpus))
