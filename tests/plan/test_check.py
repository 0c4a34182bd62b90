"""Who asks which GPU how much memory is free, before a run."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from bc2.errors import ResourceError, UsageError
from bc2.plan import check
from bc2.plan.check import check_memory_fits
from bc2.recipe import load
from bc2.train.training_settings import TrainingSettings

GPU_0, GPU_1 = int(80e9), int(20e9)


@pytest.fixture
def asked_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two GPUs that have unequal room; who was asked, by this process and by another one."""
    asked: list[str] = []

    def here(device: torch.device) -> tuple[int, int]:
        asked.append(f"here {device}")
        return ((GPU_0, GPU_1)[device.index or 0], GPU_0)

    def elsewhere(indices: Sequence[int]) -> list[int]:
        asked.append(f"elsewhere {list(indices)}")
        return [(GPU_0, GPU_1)[index] for index in indices]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", here)
    monkeypatch.setattr(check, "gpus_available", elsewhere)
    return asked


def on_gpus() -> TrainingSettings:
    plain = ["pretrain.micro_batch=1", "parallel.zero=0", "parallel.tensor=1"]
    sets = ["pretrain.device=auto", "pretrain.precision=bf16", *plain]
    return TrainingSettings.of(load("7b", sets))


def test_a_rank_asks_its_own_gpu(asked_gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("WORLD_SIZE", 2), ("RANK", 1), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(number))
    with pytest.raises(ResourceError, match=r"20\.0 GB of each of 2 can be used"):
        check_memory_fits(on_gpus(), 2)
    assert asked_gpus == ["here cuda:1"]


def test_who_starts_ranks_takes_nothing_of_a_gpu_and_looks_at_all(asked_gpus: list[str]) -> None:
    with pytest.raises(ResourceError, match=r"20\.0 GB of each of 2 can be used"):
        check_memory_fits(on_gpus(), 2, 2)
    assert asked_gpus == ["elsewhere [0, 1]"]
    with pytest.raises(UsageError, match="--nproc 3 needs as many GPUs, and 2 can be seen"):
        check_memory_fits(on_gpus(), 3, 3)
