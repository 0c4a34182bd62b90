"""Transformers' Llama with bc2's weights says what bc2's model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made_adapters import LORA, drawn
from safetensors.torch import save_file

from bc2.bench.generation.job import Job
from bc2.bench.generation.models import build_llama, build_model
from bc2.bench.llama import left_out
from bc2.generate.engine_config import EngineConfig
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model

SHAPE = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=3, num_heads=4,
    context_length=128, rope_base=500.0, initializer_range=0.2,
)  # fmt: skip


def job(**changes: Any) -> Job:
    fields = {
        "kind": "bc2", "model": SHAPE, "seed": 5, "precision": "fp32", "device": "cpu",
        "engine": EngineConfig(), "work": "",
    }  # fmt: skip
    return Job(**{**fields, **changes})


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"norm_head": False},
        {"num_kv_heads": 2, "head_dim": 8},
        {"num_kv_heads": 1, "tied": True},
    ],
    ids=str,
)
def test_logits_are_the_same(changed: dict[str, Any]) -> None:
    asked = job(model=SHAPE.model_copy(update=changed))
    ours, theirs = build_model(asked), build_llama(asked)
    text = torch.randint(97, (100,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = ours.logits(ours(text, torch.tensor([0, 100], dtype=torch.int32), 100))
        expected = theirs(text[None]).logits[0]
    assert (logits - expected).norm() / expected.norm() < 1e-5


def test_what_llama_has_not_is_named_and_left_out() -> None:
    assert left_out(SHAPE) is None
    more = {"qkv_bias": True, "qk_norm": True, "sliding_window": 8}
    model = SHAPE.model_copy(update=more)
    assert left_out(model) == (
        "biases of queries, keys and values, norms of queries and keys, a sliding window"
    )
    names = {name for name, _ in build_llama(job(model=model)).named_parameters()}
    assert names == {name for name, _ in build_llama(job()).named_parameters()}


def test_weights_follow_from_the_seed_and_have_the_precision() -> None:
    one, same, other = (build_model(job(seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    for build in (build_model, build_llama):
        assert build(job(precision="bf16")).lm_head.weight.dtype == torch.bfloat16


def test_a_checkpoint_is_taken_as_it_is(tmp_path: Path) -> None:
    made = build_model(job())
    save_model(tmp_path, SHAPE, made.state_dict())
    loaded = job(checkpoint=str(tmp_path), seed=99)
    assert torch.equal(build_model(loaded).lm_head.weight, made.lm_head.weight)
    assert torch.equal(build_llama(loaded).lm_head.weight, made.head_weight())


def test_adapters_stand_beside_a_checkpoint_and_are_merged_for_llama(tmp_path: Path) -> None:
    for folder in ("base", "adapter"):
        (tmp_path / folder).mkdir()
    save_model(tmp_path / "base", SHAPE, build_model(job()).state_dict())
    save_file(drawn(SHAPE), tmp_path / "adapter" / "model.safetensors", metadata={"format": "pt"})
    base = job(checkpoint=str(tmp_path / "base"))
    asked = base.model_copy(update={"adapter": str(tmp_path / "adapter"), "lora": LORA})
    ours, theirs, plain = build_model(asked), build_llama(asked), build_model(base)
    text = torch.randint(97, (100,), generator=torch.Generator().manual_seed(1))
    ends = torch.tensor([0, 100], dtype=torch.int32)
    with torch.inference_mode():
        logits, before = (model.logits(model(text, ends, 100)) for model in (ours, plain))
        expected = theirs(text[None]).logits[0]
    assert (logits - expected).norm() / expected.norm() < 1e-5
    assert (logits - before).norm() / before.norm() > 0.1
