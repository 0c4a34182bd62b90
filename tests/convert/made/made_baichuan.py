"""Tiny Baichuan models in the layouts of their releases, with the quirks of the first ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import made_json_tokenizers
import torch
from torch import Tensor
from weight_files import Kind, write_weights

from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import train

WINDOW = 256

#: Its code would leave a file where it is run.
REMOTE_CODE = "modeling_baichuan.py"
MARKER = "remote_code_ran"

_CODE = f"import pathlib\npathlib.Path(__file__).with_name({MARKER!r}).touch()\n"


@dataclass(frozen=True)
class Release:
    """What one of the releases is made of."""

    config: dict[str, Any]
    dtype: torch.dtype = torch.float32
    inverse_frequencies: bool = False
    """Whether the weights hold the rotary table of each layer, which is no parameter."""
    chat: bool = True
    """Whether generation_config.json has the markers of turns."""
    pad_beyond: bool = False
    """Whether a <pad> is added whose id no row has."""


_COMMON = {
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu",
    "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 80,
    "model_type": "baichuan", "num_hidden_layers": 2, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True,
    "transformers_version": "4.29.2", "vocab_size": 640,
}  # fmt: skip

RELEASES = {
    "baichuan-7b": Release(
        _COMMON | {
            "architectures": ["BaiChuanForCausalLM"], "num_attention_heads": 4,
            "max_position_embeddings": WINDOW,
        },
        inverse_frequencies=True, chat=False,
    ),
    "baichuan-13b": Release(
        # Heads of no power of two, where the released order of slopes differs.
        _COMMON | {
            "architectures": ["BaichuanForCausalLM"], "num_attention_heads": 6,
            "model_max_length": WINDOW, "gradient_checkpointing": False,
            "vocab_size": 64_000,  # which alone tells it from Baichuan 2
        },
    ),
    "baichuan2-7b": Release(
        _COMMON | {
            "architectures": ["BaichuanForCausalLM"], "num_attention_heads": 4,
            "max_position_embeddings": WINDOW, "model_max_length": WINDOW, "z_loss_weight": 0,
        },
    ),
    "baichuan2-13b": Release(
        _COMMON | {
            "architectures": ["BaichuanForCausalLM"], "num_attention_heads": 6,
            "model_max_length": WINDOW, "gradient_checkpointing": False, "z_loss_weight": 0,
            "torch_dtype": "bfloat16",
        },
        dtype=torch.bfloat16, pad_beyond=True,
    ),
}  # fmt: skip

GENERATION = {
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "user_token_id": 195,
    "assistant_token_id": 196, "max_new_tokens": 48, "temperature": 0.3, "top_k": 5,
    "top_p": 0.85, "repetition_penalty": 1.05, "do_sample": True, "transformers_version": "4.29.2",
}  # fmt: skip


@cache
def tokenizer_bytes() -> bytes:
    """A SentencePiece model with the released ids of turns."""
    return train(made_json_tokenizers.training_texts()[:3], TokenizerConfig(vocab_size=640)).model


def drawn(release: Release, seed: int = 0) -> dict[str, Tensor]:
    """Weights by their released names."""
    config, chance = release.config, torch.Generator().manual_seed(seed)
    width, inner, rows = (config[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))

    def matrix(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=chance) * 0.2).to(release.dtype)

    def norm() -> Tensor:
        return (0.5 + torch.rand(width, generator=chance)).to(release.dtype)

    state = {"model.embed_tokens.weight": matrix(rows, width)}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        state |= {
            f"{layer}self_attn.W_pack.weight": matrix(3 * width, width),
            f"{layer}self_attn.o_proj.weight": matrix(width, width),
            f"{layer}mlp.gate_proj.weight": matrix(inner, width),
            f"{layer}mlp.down_proj.weight": matrix(width, inner),
            f"{layer}mlp.up_proj.weight": matrix(inner, width),
            f"{layer}input_layernorm.weight": norm(),
            f"{layer}post_attention_layernorm.weight": norm(),
        }
        if release.inverse_frequencies:
            size = width // config["num_attention_heads"]
            table = 10000.0 ** (-torch.arange(0, size, 2) / size)
            state[f"{layer}self_attn.rotary_emb.inv_freq"] = table
    return state | {"model.norm.weight": norm(), "lm_head.weight": matrix(rows, width)}


def write(
    folder: Path, release: Release, state: Mapping[str, Tensor], kind: Kind = "bin", shards: int = 1
) -> None:
    """Write all files of a release into a folder that is not there yet."""
    folder.mkdir(parents=True)
    _json(folder / "config.json", release.config)
    write_weights(folder, state, kind, shards)
    (folder / "tokenizer.model").write_bytes(tokenizer_bytes())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokens = {
        role: {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True}
        for role, content in special.items()
    }
    settings = {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False} | tokens
    _json(folder / "tokenizer_config.json", settings | {"model_max_length": WINDOW})
    if release.chat:
        _json(folder / "generation_config.json", GENERATION)
    if release.pad_beyond:
        _json(folder / "added_tokens.json", {"<pad>": release.config["vocab_size"]})
    for name in (REMOTE_CODE, "configuration_baichuan.py", "tokenization_baichuan.py"):
        (folder / name).write_text(_CODE)


def _json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2))
