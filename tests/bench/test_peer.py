"""The peer on a machine with a GPU, which is pretended."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from bc2.bench.peer import _llama
from bc2.bench.spec import Spec
from bc2.model.model_config import ModelConfig
from bc2.train.pretrain.pretrain_config import PretrainConfig

MODEL = ModelConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2)
TRAINING = PretrainConfig(length="1 steps", batch_tokens=64, micro_batch=1, sequence_length=32)
SPEC = Spec(
    name="hf-bf16-eager",
    kind="hf",
    algorithm="pretrain",
    model=MODEL,
    training=TRAINING,
    shards="",
    weights="bf16",
)


def test_a_package_by_the_name_of_flash_attn_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention 4 is one, and transformers would refuse to make the model."""
    named = ModuleType("flash_attn")
    named.__spec__ = ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", named)
    model = _llama(SPEC, torch.device("cuda", 0))
    assert model.config._attn_implementation == "sdpa"
