"""Which family a model is written as, and which models none can hold."""

from __future__ import annotations

from typing import Any

import pytest
from small_checkpoints import SMALL

from bc2.convert.exporting.hf.family import family_for
from bc2.errors import UsageError
from bc2.model.model_config import ModelConfig


def config(**other: Any) -> ModelConfig:
    return ModelConfig(**{**SMALL, **other})


@pytest.mark.parametrize(
    ("other", "family", "word"),
    [
        ({}, "llama", None),
        ({"num_kv_heads": 2, "head_dim": 32, "tied": True}, "llama", None),
        ({"sliding_window": 16}, "mistral", "window of 16 tokens"),
        ({"hidden_size": 66, "head_dim": 32}, "mistral", "heads of 32 channels"),
        ({"qkv_bias": True}, "qwen2", "biases"),
        ({"qkv_bias": True, "sliding_window": 16}, "qwen2", "values and a window"),
        ({"qk_norm": True}, "qwen3", "norms"),
        ({"qk_norm": True, "sliding_window": 16}, "qwen3", "norms"),
    ],
)  # fmt: skip
def test_what_llama_lacks_chooses_the_family(
    other: dict[str, Any], family: str, word: str | None
) -> None:
    name, why = family_for("llama", config(**other))
    assert name == family
    if word is None:
        assert why is None
    else:
        assert word in str(why)
        assert family in str(why)
        assert family_for(family, config(**other)) == (family, None)


@pytest.mark.parametrize(
    ("asked", "other", "what", "todo"),
    [
        ("llama", {"position": "alibi"}, "ALiBi", "--to baichuan"),
        ("mistral", {"position": "alibi"}, "ALiBi", "--to gguf"),
        ("llama", {"head": "classes", "num_classes": 3}, "classes head", "--to safetensors"),
        ("llama", {"qkv_bias": True, "qk_norm": True}, "no family", "--to gguf"),
        ("mistral", {"qkv_bias": True}, "biases", "--to qwen2"),
        ("mistral", {"qk_norm": True}, "norms", "--to qwen3"),
        ("qwen2", {}, "neither", "--to llama"),
        ("qwen3", {"sliding_window": 16}, "window", "--to mistral"),
        ("qwen3", {"qkv_bias": True}, "biases", "--to qwen2"),
    ],
)
def test_what_does_not_fit_is_refused(
    asked: str, other: dict[str, Any], what: str, todo: str
) -> None:
    with pytest.raises(UsageError) as error:
        family_for(asked, config(**other))
    assert what in error.value.what
    assert todo in str(error.value.todo)
    assert error.value.where == f"--to {asked}"


def test_a_model_without_options_is_also_a_mistral() -> None:
    assert family_for("mistral", config()) == ("mistral", None)
