"""What each tensor of a written file is to be, by its name and the model's shape alone.

This is a second derivation: it does not look at what a plan says that its tensors are made of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bc2.model.model_config import ModelConfig

#: How the checkpoint's rows are changed.
Change = Literal["none", "unit", "interleaved"]

_EMBEDDING = "model.embed_tokens.weight"

#: Formats that keep the raw rows of a NormHead.
_RAW_HEAD = ("baichuan", "safetensors")

#: GGUF's names of a layer's tensors.
_GGUF = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_GGUF_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

#: Architectures of llama.cpp that rotate neighbouring channels.
_INTERLEAVED = ("llama", "baichuan")

_PART = re.compile(r"(?P<layer>.*\.self_attn\.)(?P<part>[qkv])_proj\.(?P<what>weight|bias)")


@dataclass(frozen=True)
class Expected:
    """Rows of a checkpoint's tensor."""

    source: str
    first: int
    rows: int
    change: Change = "none"


def expected(name: str, rows: int, config: ModelConfig, format: str, architecture: str) -> Expected:
    """What a written tensor of `rows` rows is made of.

    Args:
        architecture: that a GGUF file names; empty for other files.
    """
    name = _in_hf(name) if architecture else name
    if name == "lm_head.weight":
        source = _EMBEDDING if config.tied_head else name
        folded = config.norm_head and format not in _RAW_HEAD
        return Expected(source, 0, rows, "unit" if folded else "none")
    found = _PART.fullmatch(name)
    if found is None:
        return Expected(name, 0, rows)
    queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
    first = {"q": 0, "k": queries, "v": queries + keys}[found["part"]]
    turned = found["part"] != "v" and config.position == "rope" and architecture in _INTERLEAVED
    source = f"{found['layer']}W_pack.{found['what']}"
    return Expected(source, first, rows, "interleaved" if turned else "none")


def _in_hf(name: str) -> str:
    """A name of GGUF as transformers has it; one that it has not stays what it is."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _GGUF:
        return f"model.layers.{parts[1]}.{_GGUF[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in _GGUF_WHOLE:
        return f"{_GGUF_WHOLE[parts[0]]}.{parts[1]}"
    return name
