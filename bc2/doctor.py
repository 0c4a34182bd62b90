"""What this machine has for bc2, what it can do with it, and what is wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bc2 import __version__
from bc2.abilities import abilities, look
from bc2.errors import Bc2Error
from bc2.files import why_not_writable

#: Distribution -> module, in the order shown.
REQUIRED = {
    "torch": "torch",
    "sentencepiece": "sentencepiece",
    "tokenizers": "tokenizers",
    "datasets": "datasets",
    "lm-eval": "lm_eval",
    "deepspeed": "deepspeed",
    "safetensors": "safetensors",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "pyarrow": "pyarrow",
    "sqlalchemy": "sqlalchemy",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "zstandard": "zstandard",
}

#: Of these, what is for Linux alone: bc2 works without it elsewhere.
LINUX_ONLY = ("deepspeed",)

#: Extra -> distribution -> module.
EXTRAS: dict[str, dict[str, str | None]] = {
    "quickstart": {"snownlp": None},
    "cuda": {"flash-attn": "flash_attn"},
    "track": {"tensorboard": "tensorboard", "wandb": "wandb"},
    "postgres": {"psycopg": "psycopg"},
}

LOW_DISK = 2 * 2**30


@dataclass
class Diagnosis:
    """Findings, as data. `problems` is empty on a healthy machine."""

    bc2: str = __version__
    python: str = platform.python_version()
    platform: str = platform.platform()
    packages: dict[str, str] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    devices: list[dict[str, Any]] = field(default_factory=list)
    registry: dict[str, Any] = field(default_factory=dict)
    sandbox: str = ""
    """How programs that a model wrote are locked in here; or why they are not run."""
    abilities: list[dict[str, Any]] = field(default_factory=list)
    """What bc2 does: its name, whether it can here (``able``), and more about it."""
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Label and finding, for a table."""
        yield "bc2", self.bc2
        yield "python", f"{self.python} on {self.platform}"
        for device in self.devices:
            yield device["name"], device["about"]
        yield from self.packages.items()
        for extra, state in self.extras.items():
            yield f"[{extra}]", state
        for key, value in self.registry.items():
            yield f"registry {key}", str(value)
        yield "sandbox", self.sandbox
        for ability in self.abilities:
            yield ability["name"], f"{'yes' if ability['able'] else 'no'}: {ability['about']}"


def diagnose() -> Diagnosis:
    """Look at packages, devices, extras, the registry's disk, abilities. Changes nothing."""
    found = Diagnosis()
    _packages(found)
    _extras(found)
    _devices(found)
    _registry(found)
    mode, lacks = _sandbox()
    found.sandbox = mode or f"none: {lacks}"
    found.abilities = [each._asdict() for each in abilities(look(mode, lacks))]
    return found


def _version(distribution: str, module: str | None) -> tuple[str | None, str | None]:
    """Version and, if it does not import, why."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None, None
    if module is not None:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a broken package raises is the finding
            return version, f"{type(error).__name__}: {error}".splitlines()[0]
    return version, None


def _packages(found: Diagnosis) -> None:
    # DeepSpeed would look for a GPU and warn about every compiler it misses.
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not _cuda() else "cuda")
    for distribution, module in REQUIRED.items():
        version, broken = _version(distribution, module)
        found.packages[distribution] = version or "missing"
        if version is None and distribution in LINUX_ONLY and sys.platform != "linux":
            found.packages[distribution] = "not for this system"
        elif version is None:
            found.problems.append(f"{distribution} is not installed: pip install bc2")
        elif broken:
            found.packages[distribution] = f"{version}, does not import"
            found.problems.append(f"{distribution} {version} does not import: {broken}")


def _extras(found: Diagnosis) -> None:
    for extra, members in EXTRAS.items():
        states = []
        for distribution, module in members.items():
            version, broken = _version(distribution, module)
            if broken:
                found.problems.append(f"{distribution} {version} does not import: {broken}")
            states.append(f"{distribution} {'broken' if broken else version or 'not installed'}")
        found.extras[extra] = ", ".join(states)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _devices(found: Diagnosis) -> None:
    import torch

    from bc2.train.device import pick_precision

    cpu = torch.device("cpu")
    precision = pick_precision("auto", cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found.devices.append(
        {"name": "cpu", "about": f"{os.cpu_count()} cores, {memory:.0f} GiB, {precision}"}
    )
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        precision = pick_precision("auto", torch.device("cuda", index))
        size = about.total_memory / 2**30
        found.devices.append(
            {"name": f"cuda:{index}", "about": f"{about.name}, {size:.0f} GiB, {precision}"}
        )


def _registry(found: Diagnosis) -> None:
    from bc2.registry import find_home

    home = find_home()
    found.registry["home"] = str(home)
    existing = _existing(home)
    free = shutil.disk_usage(existing).free
    found.registry["free"] = f"{free / 2**30:.1f} GiB"
    if free < LOW_DISK:
        found.problems.append(f"only {free / 2**30:.1f} GiB free at {existing}")
    if reason := why_not_writable(existing):
        found.problems.append(
            f"no right to write in {existing} ({reason}): set BC2_HOME to another place"
        )
    if home.exists():
        _open_registry(found, home)


def _sandbox() -> tuple[str | None, str]:
    """How programs are locked in, None if they cannot be; and why they cannot."""
    from bc2.sandbox.run import Sandbox

    try:
        with Sandbox.open() as sandbox:
            return sandbox.mode, ""
    except Bc2Error as error:
        return None, str(error)


def _open_registry(found: Diagnosis, home: Path) -> None:
    from bc2.registry import Registry

    try:
        found.registry["artifacts"] = Registry.open(home).count()
    except Bc2Error as error:
        found.problems.append(f"the registry does not open: {error}")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
