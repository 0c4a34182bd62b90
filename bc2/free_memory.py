"""How much memory this process can still take. Imports no torch before a GPU is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import psutil

from bc2.errors import RunFailed

if TYPE_CHECKING:
    import torch

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")

#: Prints the bytes free on each GPU whose index it is given.
_ASK_GPUS = """\
import sys, torch
print(*(torch.cuda.mem_get_info(int(index))[0] for index in sys.argv[1:]))
"""


def host_available(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that this process can still take: of the machine, and of its control groups."""
    limits = list(_cgroup_room(cgroups, membership))
    return max(0, min([int(psutil.virtual_memory().available), *limits]))


def device_available(device: torch.device) -> int:
    """Bytes free on a GPU, or on the host. To ask a GPU takes some of it: see `gpus_available`."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return host_available()


def gpus_available(indices: Sequence[int]) -> list[int]:
    """Bytes free on each of some GPUs, for a process that does not compute on them itself.

    A process of its own asks: who asks a GPU takes half a gigabyte of it and holds that until
    it ends, and a launcher lives as long as its ranks.

    Raises:
        RunFailed: they do not answer.
    """
    command = [sys.executable, "-P", "-c", _ASK_GPUS, *map(str, indices)]
    asked = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or [f"exit {asked.returncode}"]
        raise RunFailed(
            f"the GPUs do not say how much memory is free: {lines[-1]}",
            todo="see whether nvidia-smi lists them, and what `bc2 doctor` says",
        )
    return [int(size) for size in asked.stdout.split()]


def _cgroup_room(root: Path, membership: Path) -> Iterator[int]:
    """Bytes that the limits of this process's groups, and of those above them, leave free."""
    if not membership.exists():
        return
    for line in membership.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _rooms(root, path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _rooms(root / "memory", path, *names)


def _rooms(root: Path, path: str, limit: str, usage: str, cache: str) -> Iterator[int]:
    group = PurePosixPath(path.lstrip("/"))
    for folder in dict.fromkeys([root / group, *(root / above for above in group.parents)]):
        try:
            most = (folder / limit).read_text(encoding="utf-8").strip()
            used = int((folder / usage).read_text(encoding="utf-8"))
            kept = dict(
                line.split()
                for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            )
        except FileNotFoundError:  # the root has no limit; a container may not see the groups above
            continue
        if most != "max":
            # The kernel frees unused pages of files before memory runs out.
            yield int(most) - used + int(kept.get(cache, 0))
