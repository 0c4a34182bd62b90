"""Which of llama.cpp's architectures computes a model, and the metadata that says its shape.

What each does was read from llama.cpp's ``src/models``, and found so by running it:

- ``llama`` rotates neighbouring channels, so rows of queries and keys are put in another order.
  Only it reads a table of rotary factors. It takes biases.
- ``qwen2`` and ``qwen3`` rotate as bc2 does; ``qwen3`` has norms of queries and keys.
- ``refact`` has ALiBi, at any depth, with any number of heads.
- ``baichuan`` goes by the number of layers: RoPE at 32, ALiBi at 40, and *nothing* at any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFWriter, Keys, RopeScalingType

from bc2.errors import UsageError
from bc2.model.model_config import ModelConfig
from bc2.model.rotary import rotary_table

#: llama.cpp's LLAMA_MAX_LAYERS.
MOST_LAYERS = 512

#: Layers at which ``baichuan`` computes what Baichuan 2 does, by its positions.
_BAICHUAN_LAYERS = {"rope": 32, "alibi": 40}

#: The table of rotary factors: what each pair of channels turns more slowly by.
FREQUENCY_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures, for one model."""

    name: str
    interleaved: bool
    """Whether it rotates neighbouring channels, and not those that are half a head apart."""
    tables: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Tensors that follow from the configuration, by name."""
    notes: tuple[str, ...] = ()


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture that computes what a model does.

    Raises:
        UsageError: none does.
    """
    _check(config)
    if config.position == "alibi":
        return _with_alibi(config)
    notes = (_window_note(config),) if _window_matters(config) else ()
    if _is_baichuan(config):
        return Architecture("baichuan", interleaved=True, notes=notes)
    if _needs_table(config):
        if config.qk_norm:
            raise UsageError(
                f"llama.cpp's qwen3 knows no rope_scaling of kind {_kind(config)!r}, and nothing "
                "else has qk_norm",
                todo="convert to another format: --to qwen3",
            )
        return Architecture("llama", True, {FREQUENCY_FACTORS: frequency_factors(config)}, notes)
    if config.qk_norm:
        return Architecture("qwen3", interleaved=False, notes=notes)
    if config.qkv_bias and config.head_size * config.num_heads == config.hidden_size:
        return Architecture("qwen2", interleaved=False, notes=notes)
    return Architecture("llama", interleaved=True, notes=notes)


def _check(config: ModelConfig) -> None:
    if config.head != "language":
        raise UsageError(
            f"GGUF has no place for a {config.head} head, and the model has no other",
            todo="convert to safetensors: --to safetensors",
        )
    if config.num_layers > MOST_LAYERS:
        raise UsageError(
            f"llama.cpp reads at most {MOST_LAYERS} layers, and the model has {config.num_layers}",
            todo="convert to another format: --to safetensors",
        )


def _with_alibi(config: ModelConfig) -> Architecture:
    if config.qk_norm:
        raise UsageError(
            "no architecture of llama.cpp has both ALiBi and qk_norm",
            todo="convert to safetensors: --to safetensors",
        )
    if _is_baichuan(config):
        return Architecture("baichuan", interleaved=False)
    note = "written as refact: the same block, with ALiBi at any depth; baichuan has it at 40 only"
    return Architecture("refact", interleaved=False, notes=(note,))


def _is_baichuan(config: ModelConfig) -> bool:
    """Whether ``baichuan`` computes the same, and the model is one: only they have a NormHead."""
    plain = (config.num_heads, config.hidden_size) == (
        config.kv_heads,
        config.num_heads * config.head_size,
    )
    others = config.qkv_bias or config.qk_norm or config.tied or config.rope_scaling
    right = config.num_layers == _BAICHUAN_LAYERS[config.position]
    return right and plain and config.norm_head and not others


# -- rotary positions -------------------------------------------------------------------------


def _kind(config: ModelConfig) -> str | None:
    return config.rope_scaling.kind if config.rope_scaling else None


def _needs_table(config: ModelConfig) -> bool:
    """Whether a scaling has no metadata that llama.cpp reads.

    It knows yarn, but reads ``yarn_beta_fast`` and ``yarn_beta_slow`` for two architectures only.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "linear":
        return False
    return scaling.kind == "llama3" or (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0)


def frequency_factors(config: ModelConfig) -> npt.NDArray[np.float32]:
    """How much more slowly each pair of channels turns by the scaling: fp32 [K / 2].

    Read off the tables that the model computes with: the angles of the token at position 1.
    """
    one, half = torch.ones(1, dtype=torch.int64), config.head_size // 2
    plain = rotary_table(one, config.head_size, config.rope_base)
    scaled = rotary_table(one, config.head_size, config.rope_base, config.rope_scaling)
    # The second half of the sines has their sign.
    turned, turned_less = (
        torch.atan2(sin[0, 0, half:], cos[0, 0, half:]) for cos, sin in (plain, scaled)
    )
    return (turned / turned_less).numpy()


def _window_matters(config: ModelConfig) -> bool:
    return (config.sliding_window or config.context_length) < config.context_length


def _window_note(config: ModelConfig) -> str:
    return (
        f"llama.cpp has no sliding window here: the context is {config.sliding_window:,} tokens in "
        f"place of {config.context_length:,}, within which nothing differs"
    )


# -- metadata ---------------------------------------------------------------------------------


def add_shape(writer: GGUFWriter, config: ModelConfig, architecture: Architecture) -> None:
    """The metadata of a model's shape and positions."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(min(config.context_length, config.sliding_window or 2**31))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.position == "alibi":
        writer.add_max_alibi_bias(8.0)  # which llama.cpp does not read, but others may
        return
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    _add_scaling(writer, config, architecture)


def _add_scaling(writer: GGUFWriter, config: ModelConfig, architecture: Architecture) -> None:
    scaling = config.rope_scaling
    if scaling is None:
        return
    if scaling.original_context is not None:
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
    usual = 1 + 0.1 * float(np.log(scaling.factor))
    factor = scaling.attention_factor or usual
    attention = Keys.Rope.SCALING_ATTN_FACTOR.format(arch=architecture.name)
    if FREQUENCY_FACTORS in architecture.tables:
        if scaling.kind == "yarn":
            writer.add_float32(attention, factor)
        return
    kind = RopeScalingType.YARN if scaling.kind == "yarn" else RopeScalingType.LINEAR
    writer.add_rope_scaling_type(kind)
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "yarn" and factor != usual:
        writer.add_float32(attention, factor / usual)  # llama.cpp multiplies by the usual one
