"""stories260K, a Llama of llama2.c: its GGUF file, put into Hugging Face's layout by transformers.

Of the two files in the shared data it is this one that is read: in the binary beside it the
matrices are in an order that llama2.c does not have.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

#: Tokens of the texts that it was trained on.
WINDOW = 512

#: GGUF's kinds of values, by struct's letters.
_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file says of a model, and its tensors in fp32."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def read(path: Path) -> Gguf:
    raw = path.read_bytes()
    magic, version, tensors, count = struct.unpack_from("<4sIQQ", raw)
    assert (magic, version) == (b"GGUF", 3) or (magic, version) == (b"GGUF", 2)
    at, facts, places = 24, {}, {}
    for _ in range(count):
        name, at = _value(raw, at, _STRING)
        (kind,) = struct.unpack_from("<I", raw, at)
        facts[name], at = _value(raw, at + 4, kind)
    for _ in range(tensors):
        name, at = _value(raw, at, _STRING)
        (dims,) = struct.unpack_from("<I", raw, at)
        *shape, dtype, offset = struct.unpack_from(f"<{dims}QIQ", raw, at + 4)
        assert dtype == 0, "fp32 alone is read"
        places[name] = tuple(reversed(shape)), offset
        at += 16 + 8 * dims
    begin = -(-at // 32) * 32
    return Gguf(
        facts,
        {
            name: torch.frombuffer(
                bytearray(raw[begin + offset :][: 4 * prod(shape)]), dtype=torch.float32
            ).view(shape)
            for name, (shape, offset) in places.items()
        },
    )


def _value(raw: bytes, at: int, kind: int) -> tuple[Any, int]:
    """A value of a kind at a place, and the place behind it."""
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", raw, at)
        return raw[at + 8 : at + 8 + length].decode(), at + 8 + length
    if kind == _ARRAY:
        inner, count = struct.unpack_from("<IQ", raw, at)
        values, at = [], at + 12
        for _ in range(count):
            value, at = _value(raw, at, inner)
            values.append(value)
        return values, at
    letter = f"<{_NUMBERS[kind]}"
    return struct.unpack_from(letter, raw, at)[0], at + struct.calcsize(letter)


def model_of(file: Gguf) -> Any:
    """The model as transformers runs it, in fp32."""
    facts, table = file.facts, file.tensors["token_embd.weight"]
    assert torch.equal(table, file.tensors["output.weight"]), "the table is tied"
    config = transformers.LlamaConfig(
        vocab_size=len(table), hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=facts["llama.attention.head_count"],
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        max_position_embeddings=WINDOW, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    size = facts["llama.rope.dimension_count"]
    state = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    state["model.norm.weight"] = file.tensors["output_norm.weight"]
    for name, tensor in file.tensors.items():
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            whole = _halves(tensor, size) if part in ("attn_q", "attn_k") else tensor
            state[f"model.layers.{layer}.{_NAMES[part]}.weight"] = whole
    model.load_state_dict(state)
    return model


def _halves(rows: Tensor, size: int) -> Tensor:
    """RoPE turns neighbouring channels in GGUF, and one half with the other in transformers."""
    return rows.view(-1, size // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def tokenizer_of(file: Gguf) -> bytes:
    """The tokenizer as a SentencePiece model."""
    model = sentencepiece_model_pb2.ModelProto()
    names, scores, kinds = (
        file.facts[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
    )
    for name, score, kind in zip(names, scores, kinds, strict=True):
        model.pieces.add(piece=name, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = 2, True, len(names)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer.name, normalizer.add_dummy_prefix = "identity", True
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    found: bytes = model.SerializeToString()
    return found


def write(file: Gguf, folder: Path) -> None:
    """Hugging Face's layout, as transformers saves it."""
    folder.mkdir(parents=True)
    model_of(file).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_of(file))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    # It makes a tokenizer.json of it, which has the beginning of texts.
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
