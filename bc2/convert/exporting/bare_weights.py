"""``--to safetensors``: the weights alone, under bc2's own names, and what says their shape."""

from __future__ import annotations

import json

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import SAFETENSORS, Dtype, ExportPlan, Reader, TargetTensor
from bc2.convert.exporting.write_safetensors import planned_sizes, write_safetensors
from bc2.generate.generation_defaults import GENERATION_FILE, GenerationDefaults
from bc2.model.store import CONFIG
from bc2.tokenizer.chat_file import chat_bytes
from bc2.tokenizer.tokenizer_files import CHAT_FILE


def plan_bare_weights(source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
    """Every tensor as it is; NormHead's rows raw. Any model can be written so, with any head."""
    dtype = dtype or source.dtype
    tensors = tuple(
        TargetTensor(name, SAFETENSORS[dtype], stored.shape, name)
        for name, stored in source.weights.items()
    )
    return ExportPlan(
        "safetensors",
        dtype,
        tensors,
        planned_sizes(tensors, limit),
        write_safetensors,
        limit,
        texts=_texts(source),
        readers=(
            Reader("safetensors", True, "every library that reads the format; names as bc2's"),
            Reader("transformers, vLLM, llama.cpp", False, "no configuration of theirs"),
        ),
    )


def _texts(source: SourceModel) -> dict[str, bytes]:
    found = {
        CONFIG: f"{json.dumps(source.config.keyed(), indent=2)}\n".encode(),
        source.tokenizer.file_name: source.tokenizer.model,
    }
    if source.chat is not None:
        found[CHAT_FILE] = chat_bytes(source.chat)
    if source.generation != GenerationDefaults():
        found[GENERATION_FILE] = source.generation.to_bytes()
    return found
