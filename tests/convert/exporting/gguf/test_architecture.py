"""Which architecture a model is written as, and what the file says of its shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import write
from gguf import GGUFReader
from small_checkpoints import checkpoint, shape
from transformers import LlamaConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bc2.convert.exporting.gguf.architecture import architecture_of, frequency_factors
from bc2.convert.exporting.gguf.plan import FILE, plan_gguf
from bc2.errors import UsageError
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.registry import Registry

LLAMA3 = {
    "kind": "llama3", "factor": 8.0, "original_context": 64, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}  # fmt: skip
YARN = {"kind": "yarn", "factor": 4.0, "original_context": 64, "beta_fast": 8.0, "beta_slow": 2.0}


@pytest.mark.parametrize(
    ("settings", "name", "interleaved"),
    [
        ({}, "llama", True),
        ({"qkv_bias": True}, "qwen2", False),
        ({"qkv_bias": True, "head_dim": 20}, "llama", True),
        ({"qkv_bias": True, "rope_scaling": LLAMA3}, "llama", True),
        ({"qk_norm": True}, "qwen3", False),
        ({"position": "alibi"}, "refact", False),
        ({"position": "alibi", "num_layers": 40}, "baichuan", False),
        ({"position": "alibi", "num_layers": 32}, "refact", False),
        ({"position": "alibi", "num_layers": 40, "num_kv_heads": 2}, "refact", False),
        ({"num_layers": 32}, "baichuan", True),
        ({"num_layers": 40}, "llama", True),
        ({"num_layers": 32, "norm_head": False}, "llama", True),
        ({"num_layers": 32, "tied": True}, "llama", True),
        ({"num_layers": 32, "rope_scaling": {"kind": "linear", "factor": 2.0}}, "llama", True),
    ],
)
def test_the_one_that_computes_it(settings: dict[str, Any], name: str, interleaved: bool) -> None:
    found = architecture_of(shape(**settings))
    assert (found.name, found.interleaved) == (name, interleaved)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"head": "scalar"}, "no place for a scalar head"),
        ({"num_layers": 513}, "at most 512 layers"),
        ({"position": "alibi", "qk_norm": True}, "both ALiBi and qk_norm"),
        ({"qk_norm": True, "rope_scaling": LLAMA3}, "no rope_scaling of kind 'llama3'"),
        ({"qk_norm": True, "rope_scaling": YARN}, "no rope_scaling of kind 'yarn'"),
    ],
)
def test_no_other_is_guessed(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        architecture_of(shape(**settings))
    assert caught.value.todo is not None
    assert "--to" in caught.value.todo


def test_a_window_bounds_the_context() -> None:
    (note,) = architecture_of(shape(sliding_window=32)).notes
    assert "32 tokens in place of 256" in note
    assert architecture_of(shape(sliding_window=256)).notes == ()


def test_rotary_factors_of_llama3() -> None:
    config = LlamaConfig(
        hidden_size=48, num_attention_heads=4, max_position_embeddings=512,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
            "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    )  # fmt: skip
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    right = 10000.0 ** (-np.arange(0, 12, 2) / 12) / scaled.numpy()
    assert np.allclose(frequency_factors(shape(rope_scaling=LLAMA3)), right, rtol=1e-5)
    assert right.max() > 7.9
    assert right.min() == pytest.approx(1)


def test_rotary_factors_of_yarn() -> None:
    config = Qwen2Config(
        hidden_size=48, num_attention_heads=4, max_position_embeddings=256,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 8.0,
            "original_max_position_embeddings": 64, "beta_slow": 2.0,
        },
    )  # fmt: skip
    scaled, _ = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    right = 10000.0 ** (-np.arange(0, 12, 2) / 12) / scaled.numpy()
    assert np.allclose(frequency_factors(shape(rope_scaling=YARN)), right, rtol=1e-5)


# -- metadata ---------------------------------------------------------------------------------


def facts_of(tmp_path: Path, generation: GenerationDefaults | None = None, **settings: Any) -> Any:
    registry = Registry.open(tmp_path / "home")
    artifact = checkpoint(registry, shape(**settings), generation=generation, layout="baichuan")
    write(artifact, tmp_path / "out", plan_gguf)
    reader = GGUFReader(tmp_path / "out" / FILE)
    names = {tensor.name for tensor in reader.tensors}
    facts = {name: field.contents() for name, field in reader.fields.items()}
    return artifact, facts | {"tensors": names}


def test_the_shape(tmp_path: Path) -> None:
    _, facts = facts_of(tmp_path, num_kv_heads=2, rope_base=5e5, norm_eps=1e-5, head_dim=16)
    right = {
        "vocab_size": 640, "context_length": 256, "embedding_length": 48, "block_count": 2,
        "feed_forward_length": 80, "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16,
        "rope.freq_base": 5e5,
    }  # fmt: skip
    assert {name: facts[f"llama.{name}"] for name in right} == right
    assert facts["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert "llama.rope.scaling.type" not in facts


def test_no_rotation_where_there_is_none(tmp_path: Path) -> None:
    _, facts = facts_of(tmp_path, position="alibi")
    assert facts["general.architecture"] == "refact"
    assert not [name for name in facts if "rope" in name]


def test_what_it_is_and_of_what(tmp_path: Path) -> None:
    wanted = GenerationDefaults(temperature=0.3, top_k=5, top_p=0.85, repetition_penalty=1.05)
    artifact, facts = facts_of(tmp_path, wanted)
    assert facts["general.name"] == "made"
    assert facts["bc2.artifact"] == artifact.digest
    assert artifact.title in facts["general.description"]
    assert facts["general.sampling.temp"] == pytest.approx(0.3)
    assert facts["general.sampling.top_k"] == 5
    assert facts["general.sampling.penalty_repeat"] == pytest.approx(1.05)
    assert "general.sampling.min_p" not in facts


@pytest.mark.parametrize("name", ["Phi-3-like", "my-phi3"])
def test_a_name_that_changes_how_llama_cpp_reads_is_left_out(name: str, tmp_path: Path) -> None:
    artifact = checkpoint(Registry.open(tmp_path / "home"), name=name.lower(), layout="baichuan")
    write(artifact, tmp_path / "out", plan_gguf)
    assert "general.name" not in GGUFReader(tmp_path / "out" / FILE).fields


@pytest.mark.parametrize(
    ("scaling", "right"),
    [
        ({"kind": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"kind": "yarn", "factor": 4.0, "original_context": 64},
            {"type": "yarn", "factor": 4.0, "original_context_length": 64},
        ),
        (
            {"kind": "yarn", "factor": 4.0, "original_context": 64, "attention_factor": 1.5},
            {
                "type": "yarn", "factor": 4.0, "original_context_length": 64,
                "attn_factor": pytest.approx(1.5 / (1 + 0.1 * np.log(4.0))),
            },
        ),
        (LLAMA3, {"original_context_length": 64}),
        (
            YARN,
            {"original_context_length": 64, "attn_factor": pytest.approx(1 + 0.1 * np.log(4.0))},
        ),
    ],
)  # fmt: skip
def test_scalings(scaling: dict[str, Any], right: dict[str, Any], tmp_path: Path) -> None:
    _, facts = facts_of(tmp_path, rope_scaling=scaling)
    begin = "llama.rope.scaling."
    found = {name.removeprefix(begin): facts[name] for name in facts if name.startswith(begin)}
    assert found == right
    assert ("rope_freqs.weight" in facts["tensors"]) == ("type" not in right)
