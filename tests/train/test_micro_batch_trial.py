"""Trials of micro-batches on a GPU, which is pretended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.cuda._utils import _get_device_index

from bc2.model.model_config import ModelConfig
from bc2.train import micro_batch_trial as module
from bc2.train.micro_batch_trial import Trial
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.training_spec import TrainingSpec

MODEL = ModelConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2)
TRAINING = PretrainConfig(
    length="10 steps", batch_tokens=8 * 32, micro_batch="auto", sequence_length=32,
    precision="fp32", device="cuda",
)  # fmt: skip


class Engine:
    """One whose steps fail as the test says."""

    error: Exception | None = None

    def discard(self) -> None:
        pass

    def accumulate(self, *_: Any, **__: Any) -> None:
        if self.error is not None:
            raise self.error

    def gradient_norm(self) -> float:
        return 1.0

    def update(self, *_: Any, **__: Any) -> None:
        pass


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """The share of each GPU that the process was limited to."""
    found: list[tuple[float, int]] = []

    def limit(fraction: float, device: Any) -> None:
        # As torch does, which refuses a device without an index here.
        found.append((fraction, _get_device_index(device)))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50, 100))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    models = SimpleNamespace(trained={"model": Engine()})
    monkeypatch.setattr(module, "make_models", lambda *_: models)
    return found


def trial() -> Trial:
    spec = TrainingSpec(algorithm="pretrain", model=MODEL, training=TRAINING)
    return Trial(spec.settings, 0.1)


def test_the_limit_is_that_of_a_gpu_with_its_index(limits: list[tuple[float, int]]) -> None:
    assert trial().fits(1) == {"fits": True, "bytes": 40}
    assert limits == [(pytest.approx(0.45), 0)]


def test_only_a_lack_of_memory_is_an_answer(limits: list[tuple[float, int]]) -> None:
    tried = trial()
    engine: Any = tried.trained["model"][0]
    for lack in (torch.OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory")):
        engine.error = lack
        assert tried.fits(1)["fits"] is False
    engine.error = RuntimeError("CUDA error: misaligned address")
    with pytest.raises(RuntimeError, match="misaligned"):
        tried.fits(1)
