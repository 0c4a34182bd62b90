"""config.json, as the importer, transformers 5 and what is older read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from small_checkpoints import SMALL

from bc2.convert.exporting.hf.config import config_json
from bc2.convert.families import FAMILIES
from bc2.convert.hf_config import HfConfig
from bc2.model.model_config import ModelConfig
from bc2.model.rope_scaling import RopeScaling

LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_context=64, low_freq_factor=1.5)
YARN = RopeScaling(kind="yarn", factor=4.0, original_context=64, beta_fast=16.0)

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "base": ("llama", {"rope_base": 500000.0, "norm_eps": 1e-5, "initializer_range": 0.01}),
    "grouped": ("llama", {"num_kv_heads": 2, "head_dim": 32}),
    "linear": ("llama", {"rope_scaling": RopeScaling(kind="linear", factor=4.0)}),
    "llama3": ("llama", {"rope_scaling": LLAMA3, "rope_base": 500000.0}),
    "yarn": ("llama", {"rope_scaling": YARN}),
    "yarn-factor": ("llama", {"rope_scaling": YARN.model_copy(update={"attention_factor": 1.5})}),
    "tied": ("llama", {"tied": True}),
    "mistral": ("mistral", {"sliding_window": 16}),
    "mistral-odd": ("mistral", {"hidden_size": 66, "head_dim": 32}),
    "qwen2": ("qwen2", {"qkv_bias": True, "rope_base": 1e6}),
    "qwen2-wide": ("qwen2", {"qkv_bias": True, "head_dim": 24}),
    "qwen2-window": ("qwen2", {"qkv_bias": True, "sliding_window": 16}),
    "qwen3": ("qwen3", {"qk_norm": True, "rope_scaling": YARN}),
    "qwen3-window": ("qwen3", {"qk_norm": True, "sliding_window": 16, "head_dim": 32}),
}  # fmt: skip


def made(name: str) -> tuple[str, ModelConfig, dict[str, Any]]:
    family, other = MODELS[name]
    config = ModelConfig(**{**SMALL, "norm_head": False, **other})
    return family, config, config_json(family, config, "bf16", tied=config.tied, ids={})


@pytest.mark.parametrize("name", MODELS)
def test_the_importer_finds_the_same_shape(name: str) -> None:
    family, config, data = made(name)
    read = HfConfig(data, "config.json")
    found = next(one for one in FAMILIES if data["architectures"][0] in one.architectures)
    assert found.name == family
    assert found.model(read) == config
    assert read.unread() == {}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_finds_base_and_scaling(name: str) -> None:
    family, config, data = made(name)
    theirs = transformers.AutoConfig.for_model(**data)
    assert theirs.model_type == family
    rope = dict(theirs.rope_parameters)
    assert rope.pop("rope_theta") == config.rope_base
    scaling = config.rope_scaling
    assert rope["rope_type"] == (scaling.kind if scaling else "default")
    if scaling is not None:
        assert rope["factor"] == scaling.factor
        assert rope.get("original_max_position_embeddings") == scaling.original_context
        assert rope.get("attention_factor") == scaling.attention_factor
    assert theirs.dtype in ("bfloat16", "torch.bfloat16") or str(theirs.dtype) == "torch.bfloat16"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lost", [("rope_parameters",), ("rope_theta", "rope_scaling")])
def test_either_spelling_alone_says_all(name: str, lost: tuple[str, ...]) -> None:
    """What reads only one of them reads the same."""
    family, config, data = made(name)
    read = HfConfig({key: one for key, one in data.items() if key not in lost}, "config.json")
    assert next(one for one in FAMILIES if one.name == family).model(read) == config


def test_what_transformers_saves_again_is_the_same(tmp_path: Path) -> None:
    for name in MODELS:
        family, config, data = made(name)
        transformers.AutoConfig.for_model(**data).save_pretrained(tmp_path / name)
        again = transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict()
        read = HfConfig(again, name)
        assert next(one for one in FAMILIES if one.name == family).model(read) == config, name
