"""Each rank of a layout works on its own GPU, which is pretended here."""

from __future__ import annotations

import pytest
import torch

from bc2.bench.spec import Spec
from bc2.bench.worker import Matmul, _on_own_device
from bc2.model.model_config import ModelConfig
from bc2.train.pretrain.pretrain_config import PretrainConfig

MODEL = ModelConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2)


def spec(ranks: int, device: str) -> Spec:
    training = PretrainConfig(
        length="1 steps", batch_tokens=64, micro_batch=1, sequence_length=32, device=device,
        precision="bf16",
    )  # fmt: skip
    return Spec(
        name="bc2", kind="bc2", algorithm="pretrain", model=MODEL, training=training, shards="",
        ranks=ranks,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "device", "expected"),
    [(2, "cuda:0", "cuda:1"), (1, "cuda:2", "cuda:2"), (2, "cpu", "cpu")],
)
def test_the_gpu_of_a_rank_is_made_current(
    ranks: int, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    for name, number in (("WORLD_SIZE", ranks), ("RANK", ranks - 1), ("LOCAL_RANK", ranks - 1)):
        monkeypatch.setenv(name, str(number))
    assert _on_own_device(spec(ranks, device)).training.device == expected
    assert current == ([] if device == "cpu" else [expected])


def test_the_products_are_made_on_the_gpu_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    assert str(Matmul(spec(1, "cuda:3")).device) == "cuda:3"
    assert current == ["cuda:3"]
