"""The families of models that bc2 knows: by each, its shape and the names of its weights.

What a family differs by is here and nowhere else: how its ``config.json`` is read, and a table
that says for each of bc2's tensors which of the family's it is made of. A tensor made of several
has their rows one after the other: queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bc2.convert.hf_config import HfConfig
from bc2.errors import DataError, nearest
from bc2.model.model_config import ModelConfig

#: Names of bc2's tensors, ``{n}`` is the layer, each with the names of what it is made of.
WeightNames = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """Models that are written alike."""

    name: str
    architectures: tuple[str, ...]
    """As ``config.json`` names them."""
    model: Callable[[HfConfig], ModelConfig]
    """The shape that a ``config.json`` says. Raises: DataError: one that bc2 does not compute."""
    weights: WeightNames
    classifier: str
    """The class of such a model with a scalar head: a sequence classifier."""
    buffers: tuple[str, ...] = ()
    """Tensors that may be there and follow from the shape."""


# -- names of weights -----------------------------------------------------------------------

_LAYER = "model.layers.{n}"
_ATTENTION = f"{_LAYER}.self_attn"


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


_SHARED = _same(
    "model.embed_tokens.weight",
    f"{_ATTENTION}.o_proj.weight",
    f"{_LAYER}.mlp.gate_proj.weight",
    f"{_LAYER}.mlp.up_proj.weight",
    f"{_LAYER}.mlp.down_proj.weight",
    f"{_LAYER}.input_layernorm.weight",
    f"{_LAYER}.post_attention_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
    "score.weight",
)


def _packed(what: str) -> dict[str, tuple[str, ...]]:
    parts = tuple(f"{_ATTENTION}.{letter}_proj.{what}" for letter in "qkv")
    return {f"{_ATTENTION}.W_pack.{what}": parts}


BAICHUAN: WeightNames = {**_SHARED, **_same(f"{_ATTENTION}.W_pack.weight")}
LLAMA: WeightNames = {**_SHARED, **_packed("weight")}
QWEN2: WeightNames = {**LLAMA, **_packed("bias")}
QWEN3: WeightNames = {
    **LLAMA,
    **_same(f"{_ATTENTION}.q_norm.weight", f"{_ATTENTION}.k_norm.weight"),
}

#: The rotary wavelengths, which files of before 2023 have.
_INV_FREQ = (f"{_ATTENTION}.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")


# -- shapes ---------------------------------------------------------------------------------

#: Tokens of a window that is not said, by transformers' own classes.
_WINDOW = 4096


#: Whether Baichuan's released models of a width rotate: 7B and 13B.
_ROTATES = {4096: True, 5120: False}


def _baichuan(config: HfConfig) -> ModelConfig:
    """Baichuan 1 and 2, and bc2's own in their layout, which say what the releases leave open.

    Releases of one size name the same class; what differs follows from keys. The 7B models rotate
    (`max_position_embeddings`), the 13B models are biased by distance (ALiBi; they have
    `model_max_length` alone). Baichuan 2 scales the head's rows (`z_loss_weight`, or the
    vocabulary of 125,696; that of Baichuan 1 is 64,000).
    """
    sizes = config.sizes()
    longest = config.optional("max_position_embeddings", int)
    rotates = _rotates(config, sizes["hidden_size"], bool(longest))
    for name, right in (("rope_theta", 10000.0), ("rope_scaling", None)):
        config.must_be(name, right)  # the released code does not look at them
    position: dict[str, Any] = {"position": "rope" if rotates else "alibi"}
    config.must_be("tie_word_embeddings", False)
    if "position_embedding" in config.data:  # the released code has no place for these
        position["num_kv_heads"] = config.optional("num_key_value_heads", int)
        position["head_dim"] = config.optional("head_dim", int)
    return config.model(
        **sizes, **position,
        norm_head=_normalises(config, sizes["vocab_size"]),
        context_length=longest or config.get("model_max_length", int),
    )  # fmt: skip


def _rotates(config: HfConfig, width: int, has_longest: bool) -> bool:
    """Whether a Baichuan rotates, and is not biased by distance: as it says, else as released."""
    said = config.optional("position_embedding", str)
    if said is None:
        if _ROTATES.get(width, has_longest) is not has_longest:
            raise DataError(
                f"positions cannot be told: of a width of {width:,} Baichuan has "
                f"{'ALiBi' if has_longest else 'RoPE'}, and "
                f"{'some' if has_longest else 'no'} max_position_embeddings say otherwise",
                where=config.where,
                todo="take config.json as it was released",
            )
        return has_longest
    if said not in ("rope", "alibi") or (said == "rope") is not has_longest:
        raise DataError(
            f"position_embedding is {said!r}, with {'some' if has_longest else 'no'} "
            "max_position_embeddings",
            where=config.where,
            todo="take config.json as it was written",
        )
    return has_longest


def _normalises(config: HfConfig, vocab_size: int) -> bool:
    said = config.optional("norm_head", bool)
    if said is not None:
        return said
    if "z_loss_weight" in config.data or vocab_size == 125_696:
        return True
    if vocab_size == 64_000 or "BaiChuanForCausalLM" in config.data["architectures"]:
        return False
    raise DataError(
        f"whether its head's rows are scaled cannot be told: no z_loss_weight, and {vocab_size:,} "
        "tokens",
        where=config.where,
        todo='of Baichuan 2 write "z_loss_weight": 0 there; of Baichuan 1 the architecture '
        "BaiChuanForCausalLM",
    )


def _llama(config: HfConfig) -> ModelConfig:
    config.must_be("attention_bias", False)
    config.must_be("mlp_bias", False)
    heads = config.get("num_attention_heads", int)
    return _rotary(config, base=10000.0, num_kv_heads=config.get("num_key_value_heads", int, heads))


def _mistral(config: HfConfig) -> ModelConfig:
    window = config.optional("sliding_window", int, _WINDOW)
    return _rotary(config, sliding_window=_window(config, window))


def _qwen2(config: HfConfig) -> ModelConfig:
    return _rotary(config, qkv_bias=True, sliding_window=_qwen_window(config))


def _qwen3(config: HfConfig) -> ModelConfig:
    config.must_be("attention_bias", False)
    if config.optional("head_dim", int) is None:
        raise DataError("head_dim is missing", where=config.where)
    return _rotary(config, qk_norm=True, sliding_window=_qwen_window(config))


def _rotary(config: HfConfig, *, base: float | None = None, **own: object) -> ModelConfig:
    """Llama's shape, and what a family has of its own."""
    if "num_kv_heads" not in own:
        own["num_kv_heads"] = config.get("num_key_value_heads", int)
    return config.model(
        **config.sizes(), **config.rotary(base), **own,
        head_dim=config.optional("head_dim", int),
        context_length=config.get("max_position_embeddings", int),
        norm_head=False,
        tied=config.get("tie_word_embeddings", bool, False),
    )  # fmt: skip


def _qwen_window(config: HfConfig) -> int | None:
    """Qwen's window is that of its upper layers, if it is used at all."""
    window, used = (
        config.optional("sliding_window", int, _WINDOW),
        config.get("use_sliding_window", bool, False),
    )
    below = config.get("max_window_layers", int, 28)
    layers = config.get("num_hidden_layers", int)
    if not used or window is None or below >= layers:
        return _window(config, None)
    if below > 0:
        raise DataError(
            f"a window in {layers - below} of {layers} layers is not supported", where=config.where
        )
    return _window(config, window)


def _window(config: HfConfig, window: int | None) -> int | None:
    """The window, which the kinds of the layers, where they are listed, must not contradict."""
    config.seen.add("layer_types")
    right = "full_attention" if window is None else "sliding_attention"
    kinds, layers = config.data.get("layer_types"), config.get("num_hidden_layers", int)
    if kinds is None:
        return window
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise DataError(f"layer_types is no list of {layers} kinds", where=config.where)
    for number, kind in enumerate(kinds):
        if kind != right:
            raise DataError(
                f"layer {number} has {kind}, and others {right}: not supported", where=config.where
            )
    return window


FAMILIES = (
    Family(
        "baichuan",
        ("BaichuanForCausalLM", "BaiChuanForCausalLM"),
        _baichuan,
        BAICHUAN,
        "BaichuanForSequenceClassification",
        _INV_FREQ,
    ),
    Family(
        "llama", ("LlamaForCausalLM",), _llama, LLAMA, "LlamaForSequenceClassification", _INV_FREQ
    ),
    Family(
        "mistral",
        ("MistralForCausalLM",),
        _mistral,
        LLAMA,
        "MistralForSequenceClassification",
        _INV_FREQ,
    ),
    Family(
        "qwen2", ("Qwen2ForCausalLM",), _qwen2, QWEN2, "Qwen2ForSequenceClassification", _INV_FREQ
    ),
    Family(
        "qwen3", ("Qwen3ForCausalLM",), _qwen3, QWEN3, "Qwen3ForSequenceClassification", _INV_FREQ
    ),
)


def family_of(config: HfConfig) -> Family:
    """The family of a model.

    Raises:
        DataError: bc2 does not know it; the nearest one is named.
    """
    named = config.data.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise DataError(f"architectures names no single one: {named!r}", where=config.where)
    for family in FAMILIES:
        if named[0] in (*family.architectures, family.classifier):
            return family
    known = [name for family in FAMILIES for name in (*family.architectures, family.classifier)]
    guess = nearest(named[0], known)
    raise DataError(
        f"the architecture {named[0]} is not supported",
        where=config.where,
        todo=(f"the nearest is {guess}; " if guess else "") + f"there are: {', '.join(known)}",
    )
