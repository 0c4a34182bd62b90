"""Peak memory of this process: resident on the host, allocated on a GPU."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sys
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def forget_peak() -> int:
    """Reset the peak of resident memory.

    Returns:
        Resident bytes now. Where the kernel cannot reset it, the peak so far stays.
    """
    # Resets VmHWM (proc(5)).
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="utf-8")
    return _resident("VmRSS")


def host_peak() -> int:
    """Most bytes that were resident at once."""
    return _resident("VmHWM")


def device_peak(device: torch.device) -> tuple[int, int] | None:
    """Most bytes allocated, and held by torch's allocator, on a GPU; None without one."""
    if device.type != "cuda":
        return None
    allocated = torch.cuda.max_memory_allocated(device)
    return allocated, torch.cuda.max_memory_reserved(device)


def allocated_peak(act: Callable[[], object], held: Iterable[Tensor]) -> int:
    """Most bytes of tensors on the host at once while `act` runs.

    Less than what is resident: freed memory that the allocator keeps, and what it cannot use
    for its size, are left out.

    Args:
        act: what to run; torch's profiler watches it, which slows it down.
        held: tensors that exist before it.
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        act()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    ]
    changes.sort(key=lambda change: float(change[0]))
    most: int = max(accumulate((size for _, size in changes), initial=0))
    return sum(storages.values()) + most


def _resident(field: str) -> int:
    if _STATUS.exists():
        found = re.search(
            rf"^{field}:\s+(\d+) kB$",
            _STATUS.read_text(encoding="utf-8", errors="replace"),
            re.MULTILINE,
        )
        assert found is not None
        return int(found[1]) << 10
    # Not Linux: the peak is all that the system tells.
    scale = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
