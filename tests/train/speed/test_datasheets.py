"""Which GPU a driver's name is of, and what its maker says of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bc2.train.speed.datasheets import DATASHEETS, MIB, datasheet_of


@pytest.mark.parametrize(
    ("name", "known", "flops", "mib"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100", 312e12, 81_920),
        ("NVIDIA A100 80GB PCIe", "a100", 312e12, 81_920),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb", 312e12, 40_960),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb", 312e12, 40_960),
        ("NVIDIA A800-SXM4-80GB", "a800", 312e12, 81_920),
        ("NVIDIA A800 80GB PCIe", "a800", 312e12, 81_920),
        ("NVIDIA H100 80GB HBM3", "h100", 989e12, 81_559),
        ("NVIDIA H100 PCIe", "h100-pcie", 756e12, 81_559),
        ("NVIDIA H100 NVL", "h100-nvl", 835e12, 95_830),
        ("NVIDIA H800", "h800", 989e12, 81_559),
        ("NVIDIA H800 PCIe", "h800-pcie", 756e12, 81_559),
        ("NVIDIA H200", "h200", 989e12, 143_771),
        ("NVIDIA H200 NVL", "h200-nvl", 835e12, 143_771),
        ("NVIDIA B200", "b200", 2250e12, 183_359),
        ("NVIDIA L40S", "l40s", 362e12, 46_068),
        ("NVIDIA GeForce RTX 4090", "rtx4090", 165e12, 24_564),
    ],
)
def test_names_that_drivers_give(name: str, known: str, flops: float, mib: int) -> None:
    sheet = datasheet_of(name)
    assert sheet is not None
    assert (sheet.name, sheet.flops, sheet.memory) == (known, flops, mib * MIB)


@pytest.mark.parametrize(
    "name",
    [
        "", "NVIDIA L40", "NVIDIA GB200", "Tesla V100-SXM2-32GB", "NVIDIA H20", "cpu",
        "NVIDIA GeForce RTX 4080", "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)  # fmt: skip
def test_a_name_that_is_like_another_is_not_that_other(name: str) -> None:
    assert datasheet_of(name) is None


def test_every_row_can_be_met_and_has_sensible_figures() -> None:
    assert len({sheet.name for sheet in DATASHEETS}) == len(DATASHEETS)
    for sheet in DATASHEETS:
        assert datasheet_of(" ".join(sheet.parts)) is sheet
        assert 100e12 < sheet.flops < 3e15
        assert 20e9 < sheet.memory < 300e9
        assert sheet.far <= sheet.near <= 900e9


def test_a_plan_needs_no_torch_to_know_a_device() -> None:
    code = "import sys, bc2.plan.devices; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=60).returncode == 0
