"""The same bits each time: what `deterministic = true` asks of torch.

Promised: the same machine, versions of torch and its libraries, recipe, seed and number of
threads give the same bits. Another number of threads adds in another order.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Only deterministic kernels and a fixed number of threads while the block runs.

    To be entered before the first product on a GPU: cuBLAS reads its variable once.

    Raises:
        RuntimeError: (inside the block, from torch) an operation has no deterministic kernel.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = torch.get_num_threads()
    cudnn = torch.backends.cudnn
    was = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    memory = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(physical_cores())
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    # A pass over all new memory, for programs that read what they have not written. None here.
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0])
        cudnn.deterministic, cudnn.benchmark = was[1:]
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.set_num_threads(threads)


@contextmanager
def in_any_order() -> Iterator[None]:
    """Allow kernels that are not deterministic, for a result that no order changes."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(True)


def physical_cores() -> int:
    """Cores that this process may run on; the threads of one core count once."""
    allowed = os.sched_getaffinity(0)
    return len({_core(number) for number in allowed})


def _core(number: int) -> str:
    """A name that the hardware threads of one core share."""
    try:
        return Path(_TOPOLOGY.format(number)).read_text(encoding="utf-8").strip()
    except OSError:
        # A container or virtual machine may not say: count it as a core of its own.
        return str(number)
