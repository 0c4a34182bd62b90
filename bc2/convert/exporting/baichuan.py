"""``--to baichuan``: the released layout of Baichuan 2, with code of our own beside the weights.

Names of weights are the releases', and NormHead's rows stay as training left them. The code, in
`bc2.convert.exporting.remote_code`, computes at any size what the released code computes at its
two; what it has no place for is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.resources import files
from typing import Any

from bc2.convert.exporting.hf.config import TORCH_NAMES, head_keys
from bc2.convert.exporting.hf.generation import generation_config, special_ids
from bc2.convert.exporting.hf.special_tokens import special_tokens
from bc2.convert.exporting.hf.texts import hf_texts
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import SAFETENSORS, Dtype, ExportPlan, Reader, TargetTensor
from bc2.convert.exporting.write_safetensors import planned_sizes, write_safetensors
from bc2.convert.families import FAMILIES
from bc2.errors import DataError, UsageError
from bc2.model.model_config import ModelConfig
from bc2.tokenizer.chat_parts import Control
from bc2.tokenizer.layout import ASSISTANT_ID, USER_ID
from bc2.tokenizer.sentencepiece_encoder import SentencePieceEncoder
from bc2.tokenizer.tokenizer_files import JSON_FILE, MODEL_FILE

_MODEL_CODE = ("configuration_baichuan.py", "modeling_baichuan.py")
_TOKENIZER_CODE = "tokenization_baichuan.py"

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

#: Conversations that a layout is tried with, as roles.
_TRIALS = (("user", "assistant", "user"), ("user", "assistant"), ("system", "user"))

#: Tokens of Baichuan 2, by which vLLM and others know it.
_RELEASED_VOCABULARY = 125_696


def plan_baichuan(source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
    """The released layout: every tensor as it is.

    Raises:
        UsageError: the released layout has no place for what the model has.
    """
    config = source.config
    _check_fits(source)
    dtype = dtype or source.dtype
    tensors = tuple(_tensors(source, dtype))
    return ExportPlan(
        "baichuan",
        dtype,
        tensors,
        planned_sizes(tensors, limit),
        write_safetensors,
        limit,
        texts=_texts(source, dtype),
        notes=_notes(config),
        readers=readers_of(config),
        prover="transformers",
    )


def _check_fits(source: SourceModel) -> None:
    config = source.config
    if config.head == "classes":
        raise _no_place(source, f"a {config.head} head", "write its weights: --to safetensors")
    rotates = config.position == "rope"
    for has, what, family in (
        (config.qkv_bias, "biases of queries, keys and values", "qwen2"),
        (config.qk_norm, "norms of queries and keys", "qwen3"),
        (config.sliding_window is not None, "a sliding window", "mistral"),
        (rotates and config.rope_base != 10000.0, f"rope_base = {config.rope_base:g}", "llama"),
        (config.rope_scaling is not None, "RoPE scaling", "llama"),
    ):
        if has:
            raise _no_place(source, what, f"convert it with --to {family}")


def _no_place(source: SourceModel, what: str, todo: str) -> UsageError:
    return UsageError(
        f"{source.artifact.title} has {what}, which Baichuan's layout has no place for", todo=todo
    )


def _tensors(source: SourceModel, dtype: Dtype) -> Iterator[TargetTensor]:
    for name, stored in source.weights.items():
        yield TargetTensor(name, SAFETENSORS[dtype], stored.shape, name)
    if source.config.tied_head:
        shape = source.weights[_EMBEDDING].shape
        yield TargetTensor(_HEAD, SAFETENSORS[dtype], shape, _EMBEDDING)


def _notes(config: ModelConfig) -> tuple[str, ...]:
    if not config.tied_head:
        return ()
    return ("Baichuan ties no head: the embedding is written twice, as the head's matrix too",)


# -- configuration --------------------------------------------------------------------------


def _config_json(source: SourceModel, dtype: Dtype) -> dict[str, Any]:
    config = source.config
    found: dict[str, Any] = {
        **head_keys(FAMILIES[0], config),
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModel": "modeling_baichuan.BaichuanModel",
            **_auto_class(config),
        },
        "model_type": "baichuan",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "model_max_length": config.context_length,
        "position_embedding": config.position,
        "norm_head": config.norm_head,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": TORCH_NAMES[dtype],
        **special_ids(source),
    }
    if config.position == "rope":
        found["max_position_embeddings"] = config.context_length
    if config.norm_head:
        found["z_loss_weight"] = 0
    if config.kv_heads != config.num_heads:
        found["num_key_value_heads"] = config.kv_heads
    if config.head_dim is not None:
        found["head_dim"] = config.head_dim
    return found


def _auto_class(config: ModelConfig) -> dict[str, str]:
    kind = "CausalLM" if config.head == "language" else "SequenceClassification"
    return {f"AutoModelFor{kind}": f"modeling_baichuan.BaichuanFor{kind}"}


def _generation_json(source: SourceModel) -> dict[str, Any]:
    """As of every model, and the markers of turns where the released code looks for them."""
    found: dict[str, Any] = json.loads(generation_config(source))
    if source.chat is not None and source.chat.name == "baichuan":
        found |= {"user_token_id": USER_ID, "assistant_token_id": ASSISTANT_ID}
    return found


# -- the other files ------------------------------------------------------------------------


def _texts(source: SourceModel, dtype: Dtype) -> dict[str, bytes]:
    found = {name: _code(name) for name in _MODEL_CODE}
    found["config.json"] = _json(_config_json(source, dtype))
    found["generation_config.json"] = _json(_generation_json(source))
    return found | _tokenizer_texts(source)


def _code(name: str) -> bytes:
    return files("bc2.convert.exporting.remote_code").joinpath(name).read_bytes()


def _tokenizer_texts(source: SourceModel) -> dict[str, bytes]:
    """A SentencePiece model with the class of ours, and the layout as a template.

    A ``tokenizer.json`` goes with the class of transformers that reads it.
    """
    if source.tokenizer.file_name == JSON_FILE:
        return hf_texts(source)
    found = {
        MODEL_FILE: source.tokenizer.model,
        _TOKENIZER_CODE: _code(_TOKENIZER_CODE),
        "tokenizer_config.json": _json(_tokenizer_json(source)),
    }
    if source.chat is not None:
        found["chat_template.jinja"] = source.chat.template.encode()
    return found


def _tokenizer_json(source: SourceModel) -> dict[str, Any]:
    encoder = SentencePieceEncoder(source.tokenizer.model)
    return {
        "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        **special_tokens(source),
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "keeps_bytes": encoder.takes_bytes,
        "dummy_prefix": encoder.dummy_prefix,
        "model_max_length": source.config.context_length,
        "additional_special_tokens": _markers(source),
    }


def _markers(source: SourceModel) -> list[str]:
    """What a template writes beside text. No other control token is named to transformers, which
    would find it in what a user says."""
    if source.chat is None:
        return []
    ids = {*source.chat.end_ids, *source.chat.markers}
    for roles in _TRIALS:
        with suppress(DataError):  # a template may have no place for a system's message
            messages = [{"role": role, "content": "Text."} for role in roles]
            parts = source.chat.parts(messages, generation_prompt=roles[-1] == "user")
            ids |= {part.token for part in parts if isinstance(part, Control)}
    names = [source.tokenizer.piece_of(token) for token in sorted(ids)]
    return [name for name in names if name not in special_tokens(source).values()]


def _json(data: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(data, indent=2, ensure_ascii=False)}\n".encode()


# -- readers --------------------------------------------------------------------------------


def readers_of(config: ModelConfig) -> tuple[Reader, ...]:
    """Who can load a model of this shape, and why others cannot."""
    if config.head != "language":
        return (Reader("transformers 5", True, "with trust_remote_code=True"),)
    instead = "; --to llama writes for it" if config.position == "rope" else ""
    return (
        Reader("transformers 5", True, "with trust_remote_code=True"),
        Reader("vLLM before 0.24", *_vllm(config)),
        Reader("vLLM from 0.24 on", False, f"it dropped Baichuan in June 2026{instead}"),
        Reader(
            "llama.cpp's convert_hf_to_gguf.py", False,
            "build 11434 recurses without end on any Baichuan; --to gguf writes for llama.cpp",
        ),
    )  # fmt: skip


def _vllm(config: ModelConfig) -> tuple[bool, str]:
    """It told positions by the width, and the head by the vocabulary."""
    if config.kv_heads != config.num_heads or config.head_dim is not None:
        return False, "it took heads of keys for as many as of queries, and their size from these"
    rotates, normalises = config.hidden_size == 4096, config.vocab_size == _RELEASED_VOCABULARY
    if rotates is not (config.position == "rope"):
        return False, f"it took a width of {config.hidden_size:,} for {_position(rotates)}"
    if normalises is not config.norm_head:
        rows = "scaled" if normalises else "left"
        return False, f"it {rows} the head's rows of a vocabulary of {config.vocab_size:,}"
    return True, ""


def _position(rotates: bool) -> str:
    return "RoPE" if rotates else "ALiBi"
