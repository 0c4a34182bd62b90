"""The tensors of a GGUF file: their names, types, and rows of the checkpoint.

Shapes: D hidden size, H heads, G heads of keys and of values, K channels of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from bc2.convert.exporting.gguf.architecture import Architecture
from bc2.convert.exporting.target import Dtype, RowChange, TargetTensor
from bc2.convert.exporting.target_rows import UNIT_ROWS
from bc2.model.model_config import ModelConfig

#: Numbers of a block, which have a scale.
_BLOCK, _ = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]

#: GGUF's names of types.
TYPES: dict[Dtype, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "q8_0": "Q8_0"}

#: In a layer: bc2's names and GGUF's.
_LAYER = {
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_NORMS = {
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}


def gguf_tensors(
    config: ModelConfig, architecture: Architecture, dtype: Dtype
) -> tuple[TargetTensor, ...]:
    """All tensors in the order of the file.

    Norms and biases are fp32, as llama.cpp wants them.
    """
    return tuple(_tensors(config, architecture, dtype))


def _tensors(
    config: ModelConfig, architecture: Architecture, dtype: Dtype
) -> Iterator[TargetTensor]:
    width, inner = config.hidden_size, config.intermediate_size
    mixed = config.num_heads * config.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.o_proj.weight": (width, mixed),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    if config.qk_norm:
        shapes |= dict.fromkeys(_NORMS, (config.head_size,))

    def target(
        name: str,
        shape: tuple[int, ...],
        source: str,
        first: int = 0,
        change: RowChange | None = None,
    ) -> TargetTensor:
        return TargetTensor(name, _type(shape, dtype), shape, source, first, change)

    yield target("token_embd.weight", (config.vocab_size, width), "model.embed_tokens.weight")
    for number in range(config.num_layers):
        there, here = f"model.layers.{number}.", f"blk.{number}."
        for what in ("weight", "bias") if config.qkv_bias else ("weight",):
            columns = (width,) if what == "weight" else ()
            for letter, first, rows, change in _parts(config, architecture):
                name, source = f"{here}attn_{letter}.{what}", f"{there}self_attn.W_pack.{what}"
                yield target(name, (rows, *columns), source, first, change)
        for source, shape in shapes.items():
            yield target(here + (_LAYER | _NORMS)[source], shape, there + source)
    yield target("output_norm.weight", (width,), "model.norm.weight")
    if not config.tied or config.norm_head:
        head = f"{config.head_module}.weight"
        change = UNIT_ROWS if config.norm_head else None
        yield target("output.weight", (config.vocab_size, width), head, 0, change)


def _type(shape: tuple[int, ...], dtype: Dtype) -> str:
    if len(shape) == 1:
        return "F32"
    if dtype == "q8_0" and shape[-1] % _BLOCK:
        return "F16"
    return TYPES[dtype]


def _parts(
    config: ModelConfig, architecture: Architecture
) -> Iterator[tuple[str, int, int, RowChange | None]]:
    """Of queries, keys and values: the letter, the first row of the packed matrix, rows, change."""
    first = 0
    turned = interleaving(config.head_size) if architecture.interleaved else None
    for letter, heads in (("q", config.num_heads), ("k", config.kv_heads), ("v", config.kv_heads)):
        rows = heads * config.head_size
        yield letter, first, rows, turned if letter != "v" else None
        first += rows


def interleaving(head_size: int) -> RowChange:
    """Rows of heads so that channels half a head apart, which rotate together, are neighbours."""

    def interleave(rows: Tensor) -> Tensor:
        halves = rows.view(-1, 2, head_size // 2, *rows.shape[1:])
        return halves.transpose(1, 2).reshape(rows.shape)

    return RowChange(head_size, interleave)
