"""What makers say of their GPUs: peaks, memory and links. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Datasheet:
    """One model of GPU."""

    name: str
    """What a person calls it."""
    parts: tuple[str, ...]
    """Words that are all in the name which its driver gives (``torch.cuda.get_device_name``)."""
    flops: float
    """Dense bf16 peak, FLOP/s: half of the figure that counts on sparsity."""
    memory: int
    """Bytes, as the driver reports them (``nvidia-smi``)."""
    near: float
    """Bytes/s to the other GPUs of its machine: half of the figure that counts both directions;
    NVLink where all eight are joined by it, else PCIe."""
    far: float
    """Bytes/s to another machine: one link of 400 (200) Gbit/s for each GPU is assumed."""


#: By NVIDIA's datasheets, and ``nvidia-smi`` for memory. Of two that match a name the first counts.
DATASHEETS = (
    Datasheet("a100", ("A100", "80GB"), 312e12, 81_920 * MIB, 300e9, 25e9),
    Datasheet("a100-40gb", ("A100",), 312e12, 40_960 * MIB, 300e9, 25e9),
    Datasheet("a800", ("A800",), 312e12, 81_920 * MIB, 200e9, 25e9),
    Datasheet("h100-pcie", ("H100", "PCIe"), 756e12, 81_559 * MIB, 64e9, 50e9),
    Datasheet("h100-nvl", ("H100", "NVL"), 835e12, 95_830 * MIB, 64e9, 50e9),
    Datasheet("h100", ("H100",), 989e12, 81_559 * MIB, 450e9, 50e9),
    Datasheet("h800-pcie", ("H800", "PCIe"), 756e12, 81_559 * MIB, 64e9, 50e9),
    Datasheet("h800", ("H800",), 989e12, 81_559 * MIB, 200e9, 50e9),
    Datasheet("h200-nvl", ("H200", "NVL"), 835e12, 143_771 * MIB, 64e9, 50e9),
    Datasheet("h200", ("H200",), 989e12, 143_771 * MIB, 450e9, 50e9),
    Datasheet("b200", ("NVIDIA B200",), 2250e12, 183_359 * MIB, 900e9, 50e9),
    Datasheet("l40s", ("L40S",), 362e12, 46_068 * MIB, 32e9, 25e9),
    Datasheet("rtx4090", ("RTX 4090",), 165e12, 24_564 * MIB, 32e9, 25e9),
)


def datasheet_of(device_name: str) -> Datasheet | None:
    """The datasheet of a GPU by the name that its driver gives; None if it is not known.

    A slice of a GPU (MIG) has no datasheet: it has the whole one's name, and less of everything.
    """
    if " MIG " in f"{device_name} ":
        return None
    for sheet in DATASHEETS:
        if all(part in device_name for part in sheet.parts):
            return sheet
    return None
