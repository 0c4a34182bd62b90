"""Devices to plan for: memory, speed and links, as their makers state them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bc2.errors import UsageError, nearest
from bc2.train.speed.datasheets import DATASHEETS


@dataclass(frozen=True)
class Device:
    """One device of several alike."""

    name: str
    kind: str
    """cuda or cpu: which buffers are made, see `bc2.train.memory`."""
    memory: float
    """Bytes."""
    flops: float
    """Dense bf16 peak, FLOP/s."""
    near: float
    """Bytes/s to other devices of its machine."""
    far: float
    """Bytes/s to another machine."""
    machine: int = 8
    """Devices of a machine."""
    price: float | None = None
    """Of an hour, in the currency in which it was given."""

    @property
    def usable(self) -> float:
        """Bytes for a plan: 7% are left for fragments, and `CONTEXT` on a GPU."""
        return self.memory * 0.93 - (CONTEXT if self.kind == "cuda" else 0)


#: Bytes that a process has on a GPU beside tensors and communicators: CUDA's context, kernels,
#: cuBLAS's workspace. An estimate, not measured.
CONTEXT = 0.6e9

#: See `bc2.train.speed.datasheets`.
DEVICES = {
    sheet.name: Device(sheet.name, "cuda", sheet.memory, sheet.flops, sheet.near, sheet.far)
    for sheet in DATASHEETS
}

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def find_device(
    name: str | None,
    *,
    count: int = 1,
    memory: str | None = None,
    flops: float | None = None,
    price: str | None = None,
) -> Device:
    """A known device, this machine's CPU, or one of given figures.

    Args:
        name: a key of `DEVICES`, or cpu; None needs `memory` and `flops`.
        count: ranks that share this machine, if it is its CPU that is planned for.
        memory: such as 80GB, instead of the device's own.
        flops: peak FLOP/s, instead of the device's own.
        price: of a device, such as 2.5/hour.

    Raises:
        UsageError: no such device, or figures that cannot be read.
    """
    if name is None:
        if memory is None or flops is None:
            raise UsageError("no device was given", todo=f"add --device: {_known()}; or {_figures}")
        device = Device("given", "cuda", 0, 0, 300e9, 25e9)
    elif name.lower() == "cpu":
        device = _cpu(flops, max(1, count))
    elif name.lower() in DEVICES:
        device = DEVICES[name.lower()]
    else:
        guess = nearest(name.lower(), [*DEVICES, "cpu"])
        hint = f"did you mean {guess!r}? " if guess else ""
        raise UsageError(
            f"no device is known as {name!r}", todo=f"{hint}there are {_known()}; or {_figures}"
        )
    return replace(
        device,
        memory=read_bytes(memory) if memory is not None else device.memory,
        flops=_positive(flops, "--flops") if flops is not None else device.flops,
        price=read_price(price) if price is not None else None,
    )


_figures = "give --memory 80GB --flops 989e12"


def _known() -> str:
    return ", ".join([*DEVICES, "cpu"])


def _cpu(flops: float | None, ranks: int) -> Device:
    """A rank's share of this machine: what is free now, and what a matrix product reaches."""
    import torch

    from bc2.free_memory import host_available
    from bc2.train.device import pick_precision
    from bc2.train.speed.peak_flops import peak_flops

    cpu = torch.device("cpu")
    peak = flops or peak_flops(cpu, pick_precision("auto", cpu)).flops
    # Gloo copies through memory.
    return Device("cpu", "cpu", host_available() / ranks, peak / ranks, 5e9, 1e9, machine=ranks)


def read_bytes(text: str) -> float:
    """Bytes of "80GB", "141 GB" or "640e8".

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", text, re.I)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--memory {text!r} is no amount of memory", todo="e.g. 80GB")
    unit = _UNITS[match[2].upper()]
    if match[3]:
        unit = 1 << {1: 0, 10**3: 10, 10**6: 20, 10**9: 30, 10**12: 40}[unit]
    return float(match[1]) * unit


def read_price(text: str) -> float:
    """The price of a device's hour: "2.5/hour" or "2.5".

    Raises:
        UsageError: it is neither.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:/\s*(?:h|hour))?\s*", text, re.I)
    if match is None:
        raise UsageError(f"--price {text!r} is no price of an hour", todo="e.g. 2.5/hour")
    return float(match[1])


def _positive(value: float, name: str) -> float:
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} {value:g} is not above 0", todo="e.g. 989e12")
    return value
