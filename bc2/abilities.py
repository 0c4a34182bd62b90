"""What a machine can and cannot do for bc2, in words: from facts that are looked up once."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Facts:
    """What abilities follow from."""

    system: str = "linux"
    """`sys.platform`."""
    gpus: int = 0
    """CUDA devices that torch can use."""
    cuda: str | None = None
    """The version of CUDA that torch was built with."""
    driver: bool = False
    """Whether the driver of a GPU is loaded, of which torch may make nothing."""
    mps: bool = False
    """Whether the GPU of a Mac is there."""
    nccl: str | None = None
    """Version; None if torch has none."""
    deepspeed: bool = False
    compiler: str | None = None
    """The C++ compiler that torch.compile would call."""
    headers: bool = False
    """Whether the headers of Python are there, which compiled code includes."""
    triton: bool = False
    flash: Literal["none", "lacking", "there"] = "none"
    """flash-attn: not installed, without `flash_attn_varlen_func`, or usable."""
    sandbox: str | None = None
    """How programs of models are locked in; None if they cannot be."""
    sandbox_lacks: str = ""
    """Why they cannot."""


class Ability(NamedTuple):
    """Something that bc2 does, and whether it can here."""

    name: str
    able: bool
    about: str


def look(sandbox: str | None, sandbox_lacks: str = "") -> Facts:
    """The facts of this machine.

    Args:
        sandbox: how programs of models are locked in here; None if they cannot be.
        sandbox_lacks: why they cannot.
    """
    import torch
    import torch.distributed as dist

    has_nccl = dist.is_available() and dist.is_nccl_available()
    nccl = torch.cuda.nccl.version() if has_nccl else ()  # type: ignore[no-untyped-call]
    return Facts(
        system=sys.platform,
        gpus=torch.cuda.device_count(),
        cuda=torch.version.cuda or torch.version.hip,
        driver=any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))),
        mps=torch.backends.mps.is_available(),
        nccl=".".join(map(str, nccl)) or None,
        deepspeed=_installed("deepspeed"),
        compiler=_compiler(),
        headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        triton=_installed("triton"),
        flash=_flash(),
        sandbox=sandbox,
        sandbox_lacks=sandbox_lacks,
    )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _compiler() -> str | None:
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX") or usual)


def _flash() -> Literal["none", "lacking", "there"]:
    if not _installed("flash_attn"):
        return "none"
    try:
        found = importlib.import_module("flash_attn")
    except Exception:  # whatever a broken package raises: `bc2 doctor` names it elsewhere
        return "lacking"
    return "there" if hasattr(found, "flash_attn_varlen_func") else "lacking"


def abilities(facts: Facts) -> list[Ability]:
    """What a machine with these facts can do, in the order in which a person asks."""
    return [
        _gpu(facts), _several_ranks(facts), _sharing(facts), _compiling(facts), _kernels(facts),
        _programs(facts),
    ]  # fmt: skip


def _gpu(facts: Facts) -> Ability:
    name = "train on a GPU"
    if facts.gpus:
        many = f"{facts.gpus} GPUs" if facts.gpus > 1 else "one GPU"
        return Ability(name, True, f"{many}, CUDA {facts.cuda}")
    if facts.mps or facts.system == "darwin":
        why = "bc2 does not use a Mac's GPU (MPS); everything runs on the CPU"
    elif facts.driver and facts.cuda is None:
        why = "a GPU's driver is here, but this torch is built for CPUs: install torch with CUDA"
    elif facts.driver:
        why = (
            f"a GPU's driver is here, but torch (CUDA {facts.cuda}) can use no GPU: is the driver "
            "too old, is CUDA_VISIBLE_DEVICES empty, was the container given none?"
        )
    else:
        why = "there is none; everything runs on the CPU"
    return Ability(name, False, why)


def _several_ranks(facts: Facts) -> Ability:
    name = "train on several ranks"
    if not facts.gpus:
        return Ability(name, True, "they share the CPU's cores, over gloo: for trying layouts out")
    if facts.gpus == 1:
        why = "a rank needs a GPU of its own, and there is one; on this machine start one rank"
        return Ability(name, False, why)
    if facts.nccl is None:
        return Ability(name, False, "this torch has no NCCL, by which ranks on GPUs communicate")
    return Ability(name, True, f"up to {facts.gpus} with --nproc, over NCCL {facts.nccl}")


def _sharing(facts: Facts) -> Ability:
    name = "ZeRO 1 to 3, offload"
    if facts.deepspeed:
        return Ability(name, True, "DeepSpeed is installed")
    if facts.system != "linux":
        return Ability(name, False, "DeepSpeed is for Linux; zero = 0, tensor and sequence work")
    return Ability(name, False, "DeepSpeed is not installed: pip install deepspeed")


def _compiling(facts: Facts) -> Ability:
    lacks = []
    if facts.compiler is None:
        lacks.append("a C++ compiler (g++, or what CXX names)")
    if not facts.headers:
        lacks.append("the headers of Python (python3-dev)")
    if facts.gpus and not facts.triton:
        lacks.append("triton (pip install triton)")
    if lacks:
        return Ability("compile", False, f"missing: {', '.join(lacks)}")
    return Ability("compile", True, f"with {facts.compiler}" + (", triton" if facts.gpus else ""))


def _kernels(facts: Facts) -> Ability:
    name = "flash-attn"
    if facts.flash == "lacking":
        why = "what is installed has no flash_attn_varlen_func, or does not import"
        return Ability(name, False, f"{why}; torch's own attention is used")
    if facts.flash == "none":
        why = "not installed: pip install 'bc2[cuda]'" if facts.gpus else "of use on a GPU only"
        return Ability(name, False, f"{why}; torch's own attention is used")
    if not facts.gpus:
        return Ability(name, False, "installed, and of use on a GPU only")
    return Ability(name, True, "flash_attn_varlen_func is there, for ALiBi too")


def _programs(facts: Facts) -> Ability:
    name = "evaluate on HumanEval, MBPP"
    if facts.sandbox is None:
        why = f"their programs run only in the sandbox: {facts.sandbox_lacks}"
        return Ability(name, False, f"{why}. Other benchmarks work")
    return Ability(name, True, f"programs are locked in by {facts.sandbox}")
