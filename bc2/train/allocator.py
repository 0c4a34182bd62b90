"""How memory is taken: glibc keeps what is freed for the next step, CUDA's blocks can grow."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

#: mallopt's names (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: The largest value that mallopt takes.
NEVER = 2**31 - 1

#: Variables with which a user chooses an allocator: then nothing is changed here.
USER_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed; for the whole process, from now on.

    By default a tensor of some megabytes is mapped when it is made and unmapped when it is
    freed, so a step of training pays for zeroing and mapping the same pages again and again: up
    to a quarter of its time on a CPU (docs/benchmarks.md).

    Returns:
        Whether it was done: not without glibc, nor where the user chose an allocator.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in USER_CHOICES):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, NEVER) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


#: What torch reads the settings of its CUDA allocator from, in one order or another.
CUDA_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")

EXPANDABLE = "expandable_segments:True"


def use_expandable_segments(device: torch.device) -> bool:
    """Have torch's CUDA allocator extend its blocks, in this process and those that it starts.

    A block of fixed size serves only requests that fit into it. With documents, and so tensors,
    whose sizes change from step to step, gigabytes come to lie in blocks that are a little too
    small. To be called before anything is allocated on a GPU.

    Returns:
        Whether it was done: not for another device, nor where the user chose settings.
    """
    if device.type != "cuda" or any(name in os.environ for name in CUDA_VARIABLES):
        return False
    os.environ["PYTORCH_ALLOC_CONF"] = EXPANDABLE
    # torch may have read its variables already.
    torch._C._accelerator_setAllocatorSettings(EXPANDABLE)
    return True
