"""The device: which one, which type it is fast in, and what its maker says of it."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path

import torch

from bc2.errors import UsageError
from bc2.ranks import local_rank, rank, world_size
from bc2.train.datasheets import datasheet_of
from bc2.train.precision import Precision

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
        found = torch.cuda.device_count()
        if local_rank() >= found:
            raise UsageError(
                f"rank {rank()} is number {local_rank()} on its machine, counted from 0, and sees "
                f"{found} CUDA devices",
                todo=f"start {found} ranks on a machine, and let each see all of its devices",
            )
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


def pick_compile(wanted: bool | str, device: torch.device) -> bool:
    """Whether the model is compiled; "auto" is on a GPU, where torch's compiler has Triton."""
    if isinstance(wanted, bool):
        return wanted
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def pick_inference_precision(wanted: str, device: torch.device) -> Precision:
    """What ``--precision`` asks for; "auto" is fp32 on a CPU.

    Raises:
        UsageError: there is no such precision.
    """
    if wanted not in ("auto", "fp32", "bf16"):
        raise UsageError(f"no such precision: {wanted}", todo="auto, fp32 or bf16")
    # On a CPU one token at a time is bound by memory either way, and fp32 is exact.
    if wanted == "auto" and device.type == "cpu":
        return "fp32"
    return pick_precision(wanted, device)


def datasheet_flops(device: torch.device, precision: Precision) -> tuple[float, str] | None:
    """Dense peak FLOP/s of a known device by its maker, and its name; None if not known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    sheet = datasheet_of(torch.cuda.get_device_name(device))
    return None if sheet is None else (sheet.flops, f"datasheet of {sheet.name.upper()}")


def cpu_model() -> str:
    """What the maker calls this machine's processor."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int | None:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
