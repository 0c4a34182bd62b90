"""The proof of packing holds for every kind of model, and fails where packing is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_samples import drawn

from bc2.align.lint import packing_proof
from bc2.align.lint.packing_proof import prove_packing, small_model
from bc2.align.samples.sample import Sample
from bc2.data.loader import IGNORED
from bc2.model.model_config import ModelConfig

MODEL: dict[str, Any] = {
    "vocab_size": 50_000, "hidden_size": 3584, "intermediate_size": 18_944, "num_layers": 28,
    "num_heads": 28, "context_length": 4096,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "rope": {},
    "alibi": {"position": "alibi"},
    "qwen2": {"num_kv_heads": 4, "qkv_bias": True, "norm_head": False},
    "qwen3": {"num_kv_heads": 14, "qk_norm": True, "tied": True},
    "window": {"sliding_window": 8},
}

ROWS = [drawn(5, 40, 50_000), drawn(9, 20, 50_000, seed=1)]


@pytest.mark.parametrize("kind", list(KINDS))
def test_packed_equals_alone(kind: str) -> None:
    proof = prove_packing(ROWS, 256, ModelConfig(**{**MODEL, **KINDS[kind]}))
    assert proof is not None
    assert proof.holds
    assert (proof.rows, proof.samples, proof.changed) == (2, 14, 10)
    assert proof.tokens == sum(len(one.tokens) for row in ROWS for one in row)
    assert proof.unbounded > 1e-3


def test_of_a_large_row_the_samples_are_tried_that_there_is_room_for() -> None:
    lengths = [1500, 700, 500, *[2] * 40]
    few = packing_proof._few([drawn_of(length) for length in lengths])
    assert [len(one.tokens) for one in few] == [1500, 500, *[2] * 24]
    assert [len(one.tokens) for one in packing_proof._few([drawn_of(9000)] * 2)] == [9000]


def drawn_of(length: int) -> Sample:
    """A sample of one label, its last."""
    labels = np.full(length, IGNORED, np.int32)
    labels[-1] = 3
    return Sample(np.arange(length, dtype=np.int32), labels, (labels != IGNORED).astype(np.float32))


def test_the_small_model_is_of_the_recipes_kind() -> None:
    config = ModelConfig(**{**MODEL, **KINDS["qwen2"]})
    small = small_model(config, 100)
    assert small.heads_per_key == config.heads_per_key == 7
    assert (small.qkv_bias, small.norm_head, small.position) == (True, False, "rope")
    assert small.vocab_size == 100


def test_samples_that_see_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where attention is not told of boundaries."""
    make = packing_proof.make_batch

    def leaking(rows: Any, *args: Any, **more: Any) -> Any:
        made = make(rows, *args, **more)
        whole = np.array([0, made.tokens.size], np.int32)
        return replace(made, cu_seqlens=whole, max_seqlen=made.tokens.size)

    monkeypatch.setattr(packing_proof, "make_batch", leaking)
    proof = prove_packing(ROWS, 256, ModelConfig(**MODEL))
    assert proof is not None
    assert not proof.holds
    assert proof.leaked > 0
    assert min(proof.loss_difference, proof.gradient_difference) > 1e-4


def test_labels_at_a_wrong_place_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where labels of a packed row are shifted once more than those of a sample alone."""
    make = packing_proof.make_batch

    def shifted(rows: Any, *args: Any, **more: Any) -> Any:
        made = make(rows, *args, **more)
        if len(rows[0]) == 1:
            return made
        labels = np.roll(made.labels, 1, axis=1)
        return replace(made, labels=np.where(made.labels == IGNORED, IGNORED, labels))

    monkeypatch.setattr(packing_proof, "make_batch", shifted)
    proof = prove_packing(ROWS, 256, ModelConfig(**MODEL))
    assert proof is not None
    assert not proof.holds
    assert proof.leaked == 0


def test_without_labels_nothing_is_tried() -> None:
    nothing = Sample(np.arange(4, dtype=np.int32), np.full(4, IGNORED, np.int32), np.zeros(4))
    assert prove_packing([[nothing]], 8, ModelConfig(**MODEL)) is None
    assert prove_packing([], 8, ModelConfig(**MODEL)) is None
