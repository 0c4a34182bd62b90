"""glibc keeps the memory of freed tensors for the next step instead of returning it."""

from __future__ import annotations

import ctypes
import os
import platform

#: mallopt's names (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: The largest value that mallopt takes.
NEVER = 2**31 - 1

#: Variables with which a user chooses an allocator: then nothing is changed here.
USER_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Have glibc keep what training frees; for the whole process, from now on.

    By default a tensor of some megabytes is mapped when it is made and unmapped when it is
    freed, so a step pays for zeroing and mapping the same pages again and again: up to a
    quarter of its time on a CPU (docs/benchmarks.md).

    Returns:
        Whether it was done: not without glibc, nor where the user chose an allocator.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in USER_CHOICES):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, NEVER) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))
