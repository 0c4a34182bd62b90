"""The device: which one, which type it is fast in, and its peak FLOP/s."""

from __future__ import annotations

import time
from typing import Literal

import torch

from bc2.errors import UsageError

Precision = Literal["bf16", "fp32"]

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}

#: Dense bf16 peak of datasheets, FLOP/s, by a part of the device's name.
DATASHEET = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}


def pick_device(wanted: str) -> torch.device:
    """Turn a recipe's ``device`` into a torch device that is here.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"no such device: {wanted}", todo="auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UsageError(f"no such device: {wanted}", todo="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UsageError(f"{wanted} is not here: {found} CUDA devices", todo="use device = auto")
    return device


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """bf16 where the device has instructions for it, unless the recipe says otherwise."""
    if wanted == "bf16" or wanted == "fp32":
        return "bf16" if wanted == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Emulated bf16 on a CPU is several times slower than fp32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def peak_flops(device: torch.device, precision: Precision) -> tuple[float, str]:
    """Peak FLOP/s of a device and where the figure comes from.

    The datasheet's if the device is known and the type is bf16; otherwise measured as the
    best of several large matrix products of the same type, about a second.
    """
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for part, peak in DATASHEET.items():
            if part in name:
                return peak, f"datasheet of {part}"
    return measure_matmul(device, DTYPES[precision]), "largest matrix product measured here"


def measure_matmul(device: torch.device, dtype: torch.dtype, seconds: float = 0.6) -> float:
    """The best FLOP/s seen over a few products of two square matrices."""
    side = 8192 if device.type == "cuda" else 2048
    left = torch.ones(side, side, dtype=dtype, device=device)
    right = torch.ones(side, side, dtype=dtype, device=device)
    out = left @ right
    best = 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not best:
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best
