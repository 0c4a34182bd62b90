"""Shapes from the ``config.json`` of each family, as they are released."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from bc2 import recipe as recipes
from bc2.convert.families import FAMILIES, family_of
from bc2.convert.hf_config import HfConfig
from bc2.errors import DataError
from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes

BAICHUAN2_7B = {
    "architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "hidden_act": "silu",
    "vocab_size": 125696, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6,
    "initializer_range": 0.02, "max_position_embeddings": 4096, "model_max_length": 4096,
    "tie_word_embeddings": False, "z_loss_weight": 0, "torch_dtype": "bfloat16",
    "auto_map": {"AutoConfig": "configuration_baichuan.BaichuanConfig"}, "use_cache": True,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.29.2",
}  # fmt: skip
BAICHUAN2_13B = {
    **BAICHUAN2_7B, "hidden_size": 5120, "intermediate_size": 13696, "num_hidden_layers": 40,
    "num_attention_heads": 40, "max_position_embeddings": None,
}  # fmt: skip
BAICHUAN_7B = {
    **{name: value for name, value in BAICHUAN2_7B.items() if name != "z_loss_weight"},
    "architectures": ["BaiChuanForCausalLM"], "vocab_size": 64000,
}  # fmt: skip
LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "vocab_size": 32000,
}  # fmt: skip
QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
    "tie_word_embeddings": False, "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def shape(data: dict[str, Any]) -> ModelConfig:
    config = HfConfig(data, "config.json")
    made = family_of(config).model(config)
    assert config.unread() == {}
    return made


def refused(data: dict[str, Any], match: str) -> None:
    config = HfConfig(data, "config.json")
    with pytest.raises(DataError, match=match) as caught:
        family_of(config).model(config)
    assert caught.value.where == "config.json"


@pytest.mark.parametrize(
    ("data", "params"),
    [
        (BAICHUAN2_7B, 7_505_973_248),  # facts of both papers' authors, derived
        (BAICHUAN2_13B, 13_896_668_160),
        (BAICHUAN_7B, 7_000_559_616),  # Baichuan-13B's README
        (LLAMA31_8B, 8_030_261_248),  # what the hub says of each
        (LLAMA2_7B, 6_738_415_616),
        (MISTRAL_7B, 7_241_732_096),
        (QWEN25_7B, 7_615_616_512),
        (QWEN3_06B, 596_049_920),
    ],
)
def test_released_models_have_their_published_sizes(data: dict[str, Any], params: int) -> None:
    assert shape(data).num_params() == params


def test_the_recipe_of_7b_is_baichuan_2() -> None:
    assert shape(BAICHUAN2_7B) == recipes.load("7b.toml").get(ModelConfig)


def test_the_two_sizes_of_baichuan() -> None:
    assert (shape(BAICHUAN2_7B).position, shape(BAICHUAN2_13B).position) == ("rope", "alibi")
    assert shape(BAICHUAN2_13B).context_length == 4096
    assert [shape(one).norm_head for one in (BAICHUAN2_7B, BAICHUAN2_13B, BAICHUAN_7B)] == [
        True, True, False,
    ]  # fmt: skip


def test_positions_that_keys_and_width_say_differently() -> None:
    """vLLM goes by the width, transformers' remote code by the repository."""
    refused({**BAICHUAN2_13B, "max_position_embeddings": 4096}, "5,120 Baichuan has ALiBi")
    refused({**BAICHUAN2_7B, "max_position_embeddings": None}, "4,096 Baichuan has RoPE")


@pytest.mark.parametrize("change", [{"rope_theta": 5e5}, {"rope_scaling": {"type": "linear"}}])
def test_what_released_baichuan_does_not_look_at(change: dict[str, Any]) -> None:
    refused({**BAICHUAN2_7B, **change}, f"{next(iter(change))} = .* is not supported")
    assert shape({**BAICHUAN2_7B, "rope_theta": 10000.0, "rope_scaling": None}).rope_base == 1e4


def test_a_head_that_may_be_either() -> None:
    unsaid = {**BAICHUAN_7B, "architectures": ["BaichuanForCausalLM"], "vocab_size": 64001}
    refused(unsaid, "head's rows are scaled cannot be told")


def test_what_an_export_of_ours_says_of_a_baichuan() -> None:
    """Whatever its width and vocabulary; of a release the same keys have no effect."""
    ours = {**BAICHUAN2_7B, "position_embedding": "rope", "norm_head": False}
    assert shape(ours).norm_head is False
    assert shape({**ours, "hidden_size": 5120, "num_attention_heads": 40}).position == "rope"
    biased = {**BAICHUAN2_7B, "position_embedding": "alibi", "max_position_embeddings": None}
    assert shape(biased).position == "alibi"
    grouped = shape({**biased, "num_key_value_heads": 8, "head_dim": 64})
    assert (grouped.kv_heads, grouped.head_size) == (8, 64)
    config = HfConfig({**BAICHUAN2_7B, "num_key_value_heads": 8}, "config.json")
    assert family_of(config).model(config).kv_heads == 32
    assert config.unread() == {"num_key_value_heads": 8}


def test_positions_that_an_export_of_ours_cannot_have() -> None:
    for said in ("alibi", "sine"):
        refused({**BAICHUAN2_7B, "position_embedding": said}, f"position_embedding is '{said}'")
    refused({**BAICHUAN2_13B, "position_embedding": "rope"}, "with no max_position_embeddings")
    refused({**BAICHUAN2_7B, "norm_head": 1}, "norm_head is 1, no bool")


def test_what_each_family_has_of_its_own() -> None:
    llama = shape(LLAMA31_8B)
    assert llama.rope_scaling is not None
    assert (llama.rope_scaling.kind, llama.rope_scaling.original_context) == ("llama3", 8192)
    assert (llama.kv_heads, llama.rope_base, llama.norm_head) == (8, 500_000.0, False)
    assert shape(LLAMA2_7B).rope_base == 10_000.0
    assert shape(MISTRAL_7B).sliding_window == 4096
    assert shape({**MISTRAL_7B, "sliding_window": None}).sliding_window is None
    qwen2, qwen3 = shape(QWEN25_7B), shape(QWEN3_06B)
    assert (qwen2.qkv_bias, qwen2.qk_norm, qwen2.tied, qwen2.sliding_window) == (
        True, False, False, None,
    )  # fmt: skip
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.tied, qwen3.head_dim) == (False, True, True, 128)


def test_a_window_in_all_layers_of_qwen_and_in_some() -> None:
    windowed = {**QWEN25_7B, "use_sliding_window": True, "sliding_window": 1024}
    assert shape({**windowed, "max_window_layers": 0}).sliding_window == 1024
    assert shape({**windowed, "max_window_layers": 28}).sliding_window is None
    refused({**windowed, "max_window_layers": 21}, "a window in 7 of 28 layers")


def test_what_is_not_said_of_a_window_is_what_the_classes_of_transformers_say() -> None:
    mistral, qwen = transformers.MistralConfig(), transformers.Qwen2Config(use_sliding_window=True)
    unsaid = {name: value for name, value in MISTRAL_7B.items() if name != "sliding_window"}
    assert shape(unsaid).sliding_window == mistral.sliding_window
    windowed = {**QWEN25_7B, "use_sliding_window": True, "max_window_layers": 0}
    del windowed["sliding_window"]
    assert shape(windowed).sliding_window == qwen.sliding_window
    del windowed["max_window_layers"]
    assert shape(windowed).sliding_window is None
    layers = qwen.max_window_layers + 1
    refused({**windowed, "num_hidden_layers": layers}, f"a window in 1 of {layers} layers")


def test_a_length_beside_the_scaling_that_is_the_scalings_own() -> None:
    beside = {**LLAMA31_8B, "original_max_position_embeddings": 8192}
    assert shape(beside) == shape(LLAMA31_8B)
    unscaled = {**LLAMA2_7B, "original_max_position_embeddings": 2048}
    assert shape(unscaled) == shape(LLAMA2_7B)
    kinds = ["full_attention"] * 27 + ["sliding_attention"]
    refused({**QWEN25_7B, "layer_types": kinds}, "layer 27 has sliding_attention")


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_biases_of_llama_are_named(key: str) -> None:
    refused({**LLAMA2_7B, key: True}, f"{key} = True is not supported")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"is_causal": None}, "is_causal = None is not supported, only True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'silu'"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers is '32', no int"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, no int"),
        ({"num_attention_heads": 33}, "not divisible"),
        ({"num_key_value_heads": 5}, "not divisible by num_kv_heads 5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "RoPE scaling 'longrope'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "odd": 1}}, "odd = 1"),
        ({"rope_scaling": {"type": "linear"}}, "RoPE scaling: factor"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}},
            "mscale = 0.7 of RoPE scaling yarn",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
            "rope_theta is 10000.0 and in rope_parameters 1000000.0",
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            "rope_parameters and rope_scaling differ",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differs between layers"),
        ({"rope_scaling": "linear"}, "rope_scaling is no object"),
    ],
)  # fmt: skip
def test_what_bc2_does_not_compute_is_named(change: dict[str, Any], match: str) -> None:
    refused({**LLAMA2_7B, **change}, match)


def test_both_spellings_of_rope_are_one_model() -> None:
    scaling = LLAMA31_8B["rope_scaling"]
    assert isinstance(scaling, dict)
    new = {**LLAMA31_8B, "rope_parameters": {**scaling, "rope_theta": 500000.0}}
    for key in ("rope_scaling", "rope_theta"):
        del new[key]
    assert shape(new) == shape(LLAMA31_8B)


def test_linear_and_yarn() -> None:
    linear = shape({**LLAMA2_7B, "rope_scaling": {"type": "linear", "factor": 4}})
    assert linear.rope_scaling is not None
    assert linear.rope_scaling.factor == 4.0
    yarn = shape({**QWEN25_7B, "rope_scaling": {"type": "yarn", "factor": 4.0}})
    assert yarn.rope_scaling is not None
    assert yarn.rope_scaling.original_context == 131072


def test_an_unknown_key_is_told() -> None:
    config = HfConfig({**LLAMA2_7B, "logit_scale": 0.5, "use_thing": False}, "config.json")
    family_of(config).model(config)
    assert config.unread() == {"logit_scale": 0.5}


@pytest.mark.parametrize("named", [None, [], ["A", "B"], "LlamaForCausalLM", [1]])
def test_no_single_architecture(named: Any) -> None:
    refused({**LLAMA2_7B, "architectures": named}, "architectures names no single one")


def test_an_unknown_architecture_has_its_nearest_named() -> None:
    config = HfConfig({**LLAMA2_7B, "architectures": ["Qwen3MoeForCausalLM"]}, "config.json")
    with pytest.raises(DataError, match="Qwen3MoeForCausalLM is not supported") as caught:
        family_of(config)
    assert "the nearest is Qwen3ForCausalLM" in (caught.value.todo or "")


def test_the_tables_name_every_tensor_of_a_shape() -> None:
    released = (BAICHUAN2_7B, LLAMA2_7B, MISTRAL_7B, QWEN25_7B, QWEN3_06B)
    for family, data in zip(FAMILIES, released, strict=True):
        small = shape({**data, "num_hidden_layers": 1})
        names = {name.replace(".0.", ".{n}.") for name in expected_shapes(small)}
        assert names <= set(family.weights)
        assert set(family.weights) - names <= {"lm_head.weight", "score.weight"}
