"""``config.json`` of Llama, Mistral, Qwen 2 and 3, as transformers 4 and 5 and vLLM read it."""

from __future__ import annotations

from typing import Any

from bc2.convert.families import FAMILIES, Family
from bc2.model.model_config import ModelConfig
from bc2.model.rope_scaling import RopeScaling

#: transformers' names of types.
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

#: Whose layout this is. Without it transformers asks whether a Mistral's tokenizer is one of those
#: that were released broken.
_WRITTEN_AS = "5.0.0"


def config_json(
    family: str, config: ModelConfig, dtype: str, *, tied: bool, ids: dict[str, Any]
) -> dict[str, Any]:
    """What ``config.json`` says of a model.

    Args:
        dtype: of the weights, one of `TORCH_NAMES`.
        tied: whether the written head is the embedding.
        ids: of special tokens, such as ``eos_token_id``.
    """
    written = next(one for one in FAMILIES if one.name == family)
    return {
        **head_keys(written, config),
        "model_type": family,
        "transformers_version": _WRITTEN_AS,
        "dtype": TORCH_NAMES[dtype],
        "torch_dtype": TORCH_NAMES[dtype],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        **_head_size(family, config),
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": tied,
        "attention_dropout": 0.0,
        "use_cache": True,
        **_rope(config),
        **_own(family, config),
        **ids,
    }


def head_keys(family: Family, config: ModelConfig) -> dict[str, Any]:
    """The class that reads a model; of one that scores, that its one label is a number."""
    if config.head == "language":
        return {"architectures": [family.architectures[0]]}
    return {
        "architectures": [family.classifier],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "problem_type": "regression",
    }


def _head_size(family: str, config: ModelConfig) -> dict[str, Any]:
    """Qwen 2 knows it as a key of others, which is there only where it does not follow."""
    if family == "qwen2" and config.head_dim is None:
        return {}
    return {"head_dim": config.head_size}


def _rope(config: ModelConfig) -> dict[str, Any]:
    """Base and scaling twice: transformers 5 has them in one table, what is older apart.

    A reader of the one spelling that finds only the other takes 10,000 for the base, and says
    nothing.
    """
    base = config.rope_base
    scaling = _scaling(config.rope_scaling) if config.rope_scaling else None
    table = scaling or {"rope_type": "default"}
    return {
        "rope_theta": base,
        "rope_parameters": {**table, "rope_theta": base},
        "rope_scaling": scaling,
    }


def _scaling(scaling: RopeScaling) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        found["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        found["low_freq_factor"] = scaling.low_freq_factor
        found["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        found["beta_fast"], found["beta_slow"] = scaling.beta_fast, scaling.beta_slow
        if scaling.attention_factor is not None:
            found["attention_factor"] = scaling.attention_factor
    return found


def _own(family: str, config: ModelConfig) -> dict[str, Any]:
    """Keys that other families have not got."""
    window = config.sliding_window
    if family == "llama":
        return {"attention_bias": False, "mlp_bias": False}
    if family == "mistral":
        return {"sliding_window": window}
    bias = {"attention_bias": False} if family == "qwen3" else {}
    # The layers from `max_window_layers` on have the window.
    below = config.num_layers if window is None else 0
    return {
        **bias,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": below,
    }
