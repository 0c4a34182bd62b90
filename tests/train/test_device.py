"""Which device, which type, and how fast it can be."""

from __future__ import annotations

import pytest
import torch

from bc2.errors import UsageError
from bc2.train import device as devices
from bc2.train.device import datasheet_flops, measure_matmul, peak_flops, pick_device

CPU = torch.device("cpu")


def test_the_best_of_several_sizes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {1024: 5e9, 2048: 9e9, 4096: 7e9}

    def measured(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
        assert (device, dtype) == (CPU, torch.float32)
        return seen.pop(side)

    monkeypatch.setattr(devices, "_measure_square", measured)
    # at 9 GFLOP/s a product of side 4096 takes 15 s
    assert measure_matmul(CPU, torch.float32, seconds=60.0) == 9e9
    assert seen == {}


def test_a_size_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def measured(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
        sides.append(side)
        return 9e9

    monkeypatch.setattr(devices, "_measure_square", measured)
    measure_matmul(CPU, torch.float32, seconds=0.6)
    assert sides == [1024]


def test_a_measured_peak_changes_no_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert measure_matmul(CPU, torch.float32, seconds=0.01) > 1e8
    assert torch.equal(torch.rand(3), expected)


def test_a_cpu_has_no_datasheet() -> None:
    assert datasheet_flops(CPU, "bf16") is None
    assert peak_flops(CPU, "fp32")[1] == "largest matrix product measured here"


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", (989e12, "datasheet of H100")),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("Something New", "bf16", None),
    ],
)
def test_a_known_gpu_has_one(
    name: str, precision: devices.Precision, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert datasheet_flops(torch.device("cuda"), precision) == expected


@pytest.mark.parametrize("wanted", ["tpu", "cpu:1", "cuda:99", "meta"])
def test_a_device_that_is_not_here(wanted: str) -> None:
    with pytest.raises(UsageError):
        pick_device(wanted)
