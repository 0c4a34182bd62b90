"""The machine and the versions that a result was taken with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

import bc2
from bc2.train.device import cores, cpu_model

SPEED_PACKAGES = ("torch", "transformers", "flash-attn", "numpy")


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What speeds depend on; no names of hosts, users or paths."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "bc2": bc2.__version__,
        "packages": {name: version for name in SPEED_PACKAGES if (version := _version(name))},
        "openmp": {name: os.environ[name] for name in sorted(os.environ) if _is_openmp(name)},
    }


def _is_openmp(name: str) -> bool:
    return name.startswith(("OMP_", "GOMP_", "KMP_"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
