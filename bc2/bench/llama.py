"""The configuration of transformers' Llama at one of our shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig


def left_out(model: ModelConfig) -> str | None:
    """What a model has beside positions and `llama_config` has not, in words; None: nothing."""
    parts = {
        "biases of queries, keys and values": model.qkv_bias,
        "norms of queries and keys": model.qk_norm,
        "scaled RoPE": model.rope_scaling is not None,
        "a sliding window": model.sliding_window is not None,
    }
    return ", ".join(name for name, has in parts.items() if has) or None


def llama_config(model: ModelConfig, **more: Any) -> Any:
    """A `LlamaConfig`, without what `left_out` names.

    With ALiBi its attention is another one, as its positions are rotary.
    """
    from transformers import LlamaConfig

    # Typed as Any: `attn_implementation` is not among the arguments that it declares.
    make: Any = LlamaConfig
    return make(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_size,
        max_position_embeddings=model.context_length,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
        tie_word_embeddings=False,
        **more,
    )
