"""The device: which one, which type it is fast in, and its peak FLOP/s."""

from __future__ import annotations

import time
from typing import Literal

import torch

from bc2.errors import UsageError
from bc2.ranks import local_rank, world_size

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


def rank_device(wanted: str) -> torch.device:
    """Like `pick_device`; of several ranks on a machine each takes another GPU.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    device = pick_device(wanted)
    if device == torch.device("cuda") and world_size() > 1:
        return torch.device("cuda", local_rank())
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

    The datasheet's if the device is known and the type is bf16; otherwise measured.
    """
    known = datasheet_flops(device, precision)
    if known is not None:
        return known
    return measure_matmul(device, DTYPES[precision]), "largest matrix product measured here"


def datasheet_flops(device: torch.device, precision: Precision) -> tuple[float, str] | None:
    """Dense peak FLOP/s of a known device by its maker, and its name; None if not known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    known = ((peak, f"datasheet of {part}") for part, peak in DATASHEET.items() if part in name)
    return next(known, None)


#: Sides of the square matrices that are tried: which is fastest differs by device.
_SIDES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}


def measure_matmul(device: torch.device, dtype: torch.dtype, seconds: float = 0.6) -> float:
    """The best FLOP/s seen over products of two square matrices of several sizes.

    Args:
        seconds: for all sizes together; a size that one product of would take longer than
            its share is left out.
    """
    sides = _SIDES[device.type]
    share = seconds / len(sides)
    best = 0.0
    for side in sides:
        if best and 2 * side**3 / best > share:
            break
        best = max(best, _measure_square(device, dtype, side, share))
    return best


def _measure_square(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    # Random numbers: a GPU draws less power for constants, and runs faster than it ever will.
    random = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(side, side, device=device, generator=random).to(dtype) for _ in range(2)
    )
    out = left @ right
    best = 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not best:
        _finish(device)
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        _finish(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
