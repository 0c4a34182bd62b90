"""What this machine is, and how fast its parts are by themselves."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from bc2.train.allocator import use_expandable_segments
from bc2.train.device import (
    cpu_model,
    datasheet_flops,
    has_python_headers,
    triton_compiler,
)
from gpu_stages.checks import Checks

PACKAGES = (
    "torch", "triton", "numpy", "transformers", "safetensors", "sentencepiece", "pyarrow", "scipy",
    "pydantic", "sqlalchemy", "zstandard", "deepspeed", "flash-attn",
)  # fmt: skip


def run(checks: Checks, part: str) -> None:
    """Names, versions and memory; then a product and copies."""
    checks.record("env", _facts(checks.device))
    with checks.part("expandable segments"):
        _segments(checks)
    with checks.part("a bf16 product"):
        _product(checks)
    with checks.part("copies"):
        _copies(checks)


def _facts(device: torch.device) -> dict[str, object]:
    facts: dict[str, object] = {
        "device": cpu_model(),
        "device_type": device.type,
        "host": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "compiler": importlib.util.find_spec("triton") is not None,
        "c_compiler": triton_compiler(),
        "python_headers": has_python_headers(),
    }
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        facts |= {
            "device": found.name,
            "devices": torch.cuda.device_count(),
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_bytes": total,
            "memory_free_bytes": free,
            "driver": _driver(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip()


def _segments(checks: Checks) -> None:
    """What training has torch's allocator do, which some virtual GPUs refuse."""
    name = "expandable segments"
    if not use_expandable_segments(checks.device):
        here = "there is no GPU" if checks.small else "the environment has chosen otherwise"
        checks.not_run(name, here)
        return
    held = torch.empty(64 << 20, dtype=torch.uint8, device=checks.device)
    address = held.data_ptr()
    segments = [
        segment
        for segment in torch.cuda.memory_snapshot()
        if segment["address"] <= address < segment["address"] + segment["total_size"]
    ]
    good = [segment["is_expandable"] for segment in segments] == [True]
    why = "else memory is lost between documents of other sizes"
    checks.true(name, good, f"a new tensor lies in one: {good}", why)


def _product(checks: Checks) -> None:
    side = 512 if checks.small else 8192
    dtype = torch.float32 if checks.small else torch.bfloat16
    a, b = (torch.randn(side, side, device=checks.device).to(dtype) for _ in range(2))
    row, expected = (a @ b)[0], a[0].double() @ b.double()
    gap = float((row.double() - expected).norm() / expected.norm())
    checks.within(
        "a product against fp64", gap, 1e-5 if checks.small else 5e-3,
        "bf16 results are rounded to 8 bits, fp32 sums of 512 to about 22",
    )  # fmt: skip
    seconds = best_seconds(lambda: torch.mm(a, b), checks.device, tries=5 if checks.small else 20)
    flops = 2 * side**3 / seconds
    name = f"{side}³ {'fp32' if checks.small else 'bf16'} product"
    checks.figure(name, round(flops / 1e12, 3), "TFLOP/s", key=True)
    known = datasheet_flops(checks.device, "bf16")
    if known is not None:
        checks.figure(f"of the {known[1]}", round(flops / known[0], 3))


def _copies(checks: Checks) -> None:
    size = (64 << 20) if checks.small else (2 << 30)
    here = torch.zeros(size, dtype=torch.uint8, device=checks.device)
    there = torch.empty_like(here)
    seconds = best_seconds(lambda: there.copy_(here), checks.device)
    # Each byte is read and written.
    checks.figure("a copy on the device", round(2 * size / seconds / 1e9, 1), "GB/s", key=True)
    if checks.small:
        checks.not_run("copies from host to device", "there is no device beside the host")
        return
    part = here[: 1 << 28]
    for pinned in (False, True):
        host = torch.zeros(1 << 28, dtype=torch.uint8, pin_memory=pinned)
        kind = "pinned" if pinned else "pageable"
        for name, act in (
            (f"host to device, {kind}", lambda host=host: part.copy_(host, non_blocking=True)),
            (f"device to host, {kind}", lambda host=host: host.copy_(part, non_blocking=True)),
        ):
            rate = (1 << 28) / best_seconds(act, checks.device) / 1e9
            checks.figure(name, round(rate, 1), "GB/s", key=pinned)


def best_seconds(act: Callable[[], object], device: torch.device, tries: int = 5) -> float:
    """The shortest time of one call."""
    act()
    found = []
    for _ in range(tries):
        wait(device)
        began = time.perf_counter()
        act()
        wait(device)
        found.append(time.perf_counter() - began)
    return min(found)


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
