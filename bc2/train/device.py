"""The device: which one, which type it is fast in, and what its maker says of it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sysconfig
from pathlib import Path

import torch

from bc2.errors import UsageError
from bc2.parallel.own_device import make_current
from bc2.process.cores import usable_cores
from bc2.ranks import local_rank, rank, world_size
from bc2.train.precision import Precision
from bc2.train.speed.datasheets import datasheet_of

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pick_device(wanted: str) -> torch.device:
    """Turn a recipe's ``device`` into a torch device that is here; of a GPU with its index.

    It takes nothing of a GPU: a process that only starts others may call it.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"no such device: {wanted}", todo="auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UsageError(f"no such device: {wanted}", todo="auto, cpu, cuda or cuda:N")
    if device.type != "cuda":
        return device
    index, found = device.index or 0, torch.cuda.device_count()
    if index >= found:
        raise UsageError(f"{wanted} is not here: {found} CUDA devices", todo="use device = auto")
    # An index always: torch refuses a device without one in places (`set_device` is one).
    return torch.device("cuda", index)


def rank_device(wanted: str) -> torch.device:
    """Like `pick_device`; of several ranks on a machine each takes another GPU.

    A rank that sees a single GPU takes that one, whatever its number: under
    ``srun --gpus-per-task=1`` each rank sees its own alone, as number 0. That no two ranks have
    the same one is checked when they meet (`bc2.parallel.own_device`).

    Raises:
        UsageError: no such device, or not on this machine.
    """
    device = pick_device(wanted)
    if device.type == "cpu" or wanted not in ("auto", "cuda") or world_size() == 1:
        return device
    number, found = local_rank(), torch.cuda.device_count()
    if number < found:
        return torch.device("cuda", number)
    if found == 1:
        return device
    raise UsageError(
        f"rank {rank()} is number {number} on its machine, counted from 0, and sees "
        f"{found} CUDA devices",
        todo=f"start {found} ranks on a machine, and let each see all of its devices, or each "
        "its own alone",
    )


def take_device(wanted: str) -> torch.device:
    """This rank's device, made current: what each process that computes does first.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    device = rank_device(wanted)
    make_current(device)
    return device


def check_gpus_for(wanted: str, nproc: int) -> None:
    """Before ranks are started on this machine: there is a GPU for each, if they want GPUs.

    Args:
        nproc: ranks that are started here.

    Raises:
        UsageError: no such device, or fewer than there will be ranks.
    """
    device = pick_device(wanted)
    named = wanted not in ("auto", "cuda")
    found = 1 if named else torch.cuda.device_count()
    if device.type == "cuda" and nproc > found:
        raise UsageError(
            f"--nproc {nproc} needs as many GPUs, and "
            + (f"device = {wanted} is one" if named else f"{found} can be seen"),
            todo="start no more ranks than there are GPUs, with device = auto",
        )


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """bf16 where the device has instructions for it, unless the recipe says otherwise."""
    if wanted == "bf16" or wanted == "fp32":
        return "bf16" if wanted == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if _has_bf16(device) else "fp32"
    # Emulated bf16 on a CPU is several times slower than fp32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def pick_compile(wanted: bool | str, device: torch.device) -> bool:
    """Whether the model is compiled; "auto" is on a GPU, where torch's compiler can work."""
    if isinstance(wanted, bool):
        return wanted
    return (
        device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and triton_compiler() is not None
        and has_python_headers()
    )


def triton_compiler() -> str | None:
    """The C compiler with which Triton builds what launches its kernels; None: there is none."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def has_python_headers() -> bool:
    """Whether the headers of Python are here, which Triton's launchers include."""
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def _has_bf16(device: torch.device) -> bool:
    # `torch.cuda.is_bf16_supported` says it of the current device, which may be another one.
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


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


def cores() -> int:
    """Those that this process may use."""
    return len(usable_cores())
