"""bc2's model of a job, and transformers' Llama with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bc2.bench.generation.job import Job
from bc2.bench.llama import llama_config
from bc2.model.lora import merge
from bc2.model.saved_adapter import add_adapters
from bc2.model.store import load_model
from bc2.model.transformer import Transformer
from bc2.train.device import DTYPES


def build_model(job: Job) -> Transformer:
    """The model with the weights of a checkpoint, or random ones."""
    device, dtype = torch.device(job.device), DTYPES[job.precision]
    if job.checkpoint is not None:
        loaded = load_model(Path(job.checkpoint), device, dtype, config=job.model)
        if job.adapter is not None and job.lora is not None:
            add_adapters(loaded, Path(job.adapter), job.lora, device, dtype)
        return loaded.eval()
    model = Transformer(job.model)
    model.init_weights(torch.Generator().manual_seed(job.seed))
    return model.to(device, dtype).eval()


def build_llama(job: Job) -> Any:
    """LlamaForCausalLM with the weights of `build_model`; a NormHead becomes a plain head.

    Adapters are merged into its weights.
    """
    from transformers import LlamaForCausalLM

    ours = build_model(job)
    merge(ours)
    with torch.device("meta"):
        # No token ends an answer: all of them have the length that is asked for.
        ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
        config = llama_config(job.model, attn_implementation="sdpa", **ends)
        theirs: Any = LlamaForCausalLM(config)
    theirs = theirs.to(DTYPES[job.precision]).to_empty(device=job.device)
    theirs.load_state_dict(dict(_to_llama(ours)))
    # Not among the weights, so `to_empty` left it without values.
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config).to(job.device)
    return theirs.eval()


def _to_llama(ours: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Our names and rows as Llama's: W_pack splits into its parts, the head's rows are scaled."""
    config = ours.config
    rows = [heads * config.head_size for heads in (config.num_heads, *[config.kv_heads] * 2)]
    for name, weight in ours.state_dict().items():
        if name.endswith(("W_pack.bias", "q_norm.weight", "k_norm.weight")):
            continue  # See `left_out`.
        if "W_pack" in name:
            for part, piece in zip("qkv", weight.split(rows), strict=True):
                yield name.replace("W_pack", f"{part}_proj"), piece
        else:
            yield name, weight
    yield "lm_head.weight", ours.head_weight().detach().to(ours.language_head.weight.dtype)
