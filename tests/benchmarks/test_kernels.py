"""What of a profile is counted as work of the GPU."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_stages import bench
from gpu_stages.checks import Checks

CUDA, CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU


def event(key: str, microseconds: float, count: int, device: Any, annotation: bool) -> Any:
    return SimpleNamespace(
        key=key, self_device_time_total=microseconds, count=count, device_type=device,
        is_user_annotation=annotation,
    )  # fmt: skip


@pytest.fixture
def checks(tmp_path: Path) -> Checks:
    device = torch.device("cuda", 0)
    return Checks("bench", tmp_path / "rows", out=tmp_path, scratch=tmp_path, device=device)


def rows(checks: Checks) -> list[dict[str, Any]]:
    return [json.loads(line) for line in checks.path.read_text().splitlines()]


def test_named_parts_of_a_program_are_no_kernels_of_their_own(checks: Checks) -> None:
    bench._write_kernels(
        checks,
        [
            event("aten::mm", 0.0, 9, CPU, False),
            event("Optimizer.step#AdamW.step", 500.0, 1, CUDA, True),
            event("gemm", 600.0, 9, CUDA, False),
            event("adam", 400.0, 2, CUDA, False),
        ],
    )
    with (checks.out / "kernels.csv").open(newline="") as stream:
        table = list(csv.reader(stream))[1:]
    assert table == [["gemm", "600.0", "0.6", "9"], ["adam", "400.0", "0.4", "2"]]
    found = {row["figure"]: row["value"] for row in rows(checks) if "figure" in row}
    assert found == {"kernels of a step": 11, "time in kernels": 1.0}


def test_a_profile_without_kernels_is_a_failure(checks: Checks) -> None:
    bench._write_kernels(checks, [event("aten::mm", 0.0, 9, CPU, False)])
    assert [row["check"] for row in rows(checks) if row.get("status") == "failed"] == [
        "the profiler sees kernels"
    ]
