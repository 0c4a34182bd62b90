"""Which device, and what its maker says of it."""

from __future__ import annotations

import pytest
import torch

from bc2.errors import UsageError
from bc2.train.device import datasheet_flops, pick_device
from bc2.train.precision import Precision

CPU = torch.device("cpu")


def test_a_cpu_has_no_datasheet() -> None:
    assert datasheet_flops(CPU, "bf16") is None


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", (989e12, "datasheet of H100")),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("Something New", "bf16", None),
    ],
)
def test_a_known_gpu_has_one(
    name: str, precision: Precision, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert datasheet_flops(torch.device("cuda"), precision) == expected


@pytest.mark.parametrize("wanted", ["tpu", "cpu:1", "cuda:99", "meta"])
def test_a_device_that_is_not_here(wanted: str) -> None:
    with pytest.raises(UsageError):
        pick_device(wanted)
