"""Errors in a part of a stage: what is told of them, and what comes after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_stages import head
from gpu_stages.checks import Checks


def make_checks(folder: Path, device: str) -> Checks:
    place = torch.device(device)
    return Checks("made", folder / "rows", out=folder, scratch=folder, device=place)


def rows(checks: Checks) -> list[dict[str, Any]]:
    return [json.loads(line) for line in checks.path.read_text().splitlines()]


def test_an_error_inside_torch_is_told_with_the_place_that_called_it(tmp_path: Path) -> None:
    checks = make_checks(tmp_path, "cpu")
    with checks.part("a part"):
        torch.nn.Linear(2, 2)(torch.ones(3))
    (row,) = rows(checks)
    assert row["saw"].startswith("RuntimeError: ")
    assert "linear.py:" in row["saw"]
    assert "< test_checks.py:" in row["saw"]


def test_a_gpu_that_can_still_be_used_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    checks = make_checks(tmp_path, "cuda:0")
    with checks.part("a part"):
        raise torch.cuda.OutOfMemoryError("no")
    checks.true("the rest", True, "this", "it is")
    assert [row["status"] for row in rows(checks)] == ["failed", "passed"]


def test_a_gpu_that_is_lost_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    checks = make_checks(tmp_path, "cuda:0")
    with (
        pytest.raises(SystemExit, match=r"cannot be used any more.*illegal memory access$"),
        checks.part("a part"),
    ):
        lost(checks.device)
    assert [row["status"] for row in rows(checks)] == ["failed"]


@pytest.fixture
def tied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of the head whose largest logits bf16 confuses for 4 of 60 tokens; usual are 3%."""
    vocab, size, count = 12_007, 32, 60
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(count, size, generator=generator).bfloat16()
    weight = torch.randn(vocab, size, generator=generator) * size**-0.5
    labels = torch.randint(vocab, (count,), generator=generator)
    monkeypatch.setattr(head, "_inputs", lambda checks, vocab, precision: (hidden, weight, labels))


def gradients_of_bf16(checks: Checks) -> list[dict[str, Any]]:
    head._against_fp64(checks, "made", 12_007, "bf16", False, 0.01)
    return [row for row in rows(checks) if "gradient" in row["check"]]


@pytest.mark.usefixtures("tied")
def test_the_head_passes_where_bf16_takes_another_logit_for_the_largest(tmp_path: Path) -> None:
    found = gradients_of_bf16(make_checks(tmp_path, "cpu"))
    assert [row["status"] for row in found] == ["passed", "passed"]
    assert found[0]["value"] > head.LIMITS["bf16"][1]


@pytest.mark.usefixtures("tied")
def test_the_head_fails_without_the_gradient_of_max_z(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_z = head.head_loss

    def without_z(*tensors: torch.Tensor, **options: Any) -> Any:
        return with_z(*tensors, **options | {"z_weight": 0.0})

    monkeypatch.setattr(head, "head_loss", without_z)
    found = gradients_of_bf16(make_checks(tmp_path, "cpu"))
    assert [row["status"] for row in found] == ["failed", "failed"]
