"""``--to llama``, ``mistral``, ``qwen2`` and ``qwen3``: for transformers and vLLM as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator

from bc2.convert.exporting.hf.config import config_json
from bc2.convert.exporting.hf.family import family_for
from bc2.convert.exporting.hf.generation import generation_config, special_ids
from bc2.convert.exporting.hf.qwen2_tokenizer import check_qwen2_reads
from bc2.convert.exporting.hf.tensors import family_tensors, stays_tied
from bc2.convert.exporting.hf.texts import hf_texts
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import Dtype, ExportPlan, Reader
from bc2.convert.exporting.write_safetensors import planned_sizes, write_safetensors
from bc2.model.model_config import ModelConfig


def plan_llama(source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
    """Llama, or whichever family has what the model has.

    Raises:
        UsageError: none has; or the tokenizer cannot be written for transformers.
    """
    return _plan("llama", source, dtype, limit)


def plan_mistral(source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
    """Mistral. Raises: UsageError: the model is none, see `plan_llama`."""
    return _plan("mistral", source, dtype, limit)


def plan_qwen2(source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
    """Qwen 2. Raises: UsageError: the model is none, see `plan_llama`."""
    return _plan("qwen2", source, dtype, limit)


def plan_qwen3(source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
    """Qwen 3. Raises: UsageError: the model is none, see `plan_llama`."""
    return _plan("qwen3", source, dtype, limit)


def _plan(asked: str, source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
    family, why = family_for(asked, source.config)
    if family == "qwen2":
        check_qwen2_reads(source.tokenizer, asked)
    tensors = family_tensors(source, family, dtype)
    texts = {
        "config.json": _config(family, source, dtype or source.dtype),
        "generation_config.json": generation_config(source),
        **hf_texts(source),
    }
    return ExportPlan(
        family,
        dtype or source.dtype,
        tensors,
        planned_sizes(tensors, limit),
        write_safetensors,
        limit,
        texts=texts,
        notes=tuple([why] if why else []) + tuple(_notes(source.config)),
        readers=tuple(_readers(family, source.config)),
        prover="transformers",
    )


def _config(family: str, source: SourceModel, dtype: Dtype) -> bytes:
    tied = stays_tied(source.config)
    data = config_json(family, source.config, dtype, tied=tied, ids=special_ids(source))
    return f"{json.dumps(data, indent=2)}\n".encode()


def _notes(config: ModelConfig) -> Iterator[str]:
    if config.head != "language":
        return
    if config.norm_head:
        yield "NormHead is folded into the head: its rows are written with unit length"
    if config.norm_head and config.tied:
        yield "the head is written apart from the embedding, whose rows keep their lengths"


#: Channels of heads that vLLM's attention on a CPU knows (0.32).
_VLLM_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def _readers(family: str, config: ModelConfig) -> Iterator[Reader]:
    auto = "CausalLM" if config.head == "language" else "SequenceClassification"
    yield Reader("transformers 4.57 and 5", True, f"AutoModelFor{auto} and AutoTokenizer alone")
    if config.head != "language":
        return  # vLLM's classifiers were not tried
    if family == "qwen2" and config.head_dim is not None:
        yield Reader("vLLM", False, "its Qwen 2 takes hidden_size / num_heads for the heads' size")
    elif config.head_size not in _VLLM_CPU_HEADS:
        yield Reader("vLLM", True, f"but not on a CPU, with heads of {config.head_size} channels")
    else:
        yield Reader("vLLM", True)
