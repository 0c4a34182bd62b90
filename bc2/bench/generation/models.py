"""bc2's model of a job, and transformers' Llama with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bc2.bench.generation.job import Job
from bc2.model.model_config import ModelConfig
from bc2.model.store import load_model
from bc2.model.transformer import Transformer
from bc2.train.device import DTYPES


def build_model(job: Job) -> Transformer:
    """The model with the weights of a checkpoint, or random ones."""
    device, dtype = torch.device(job.device), DTYPES[job.precision]
    if job.checkpoint is not None:
        return load_model(Path(job.checkpoint), device=device, dtype=dtype).eval()
    model = Transformer(job.model)
    model.init_weights(torch.Generator().manual_seed(job.seed))
    return model.to(device, dtype).eval()


def build_llama(job: Job) -> Any:
    """LlamaForCausalLM with the weights of `build_model`; a NormHead becomes a plain head.

    With ALiBi its attention is another one, since Llama's positions are always rotary.
    """
    from transformers import LlamaForCausalLM

    ours = build_model(job)
    with torch.device("meta"):
        theirs: Any = LlamaForCausalLM(_llama_config(job.model))
    theirs = theirs.to(DTYPES[job.precision]).to_empty(device=job.device)
    theirs.load_state_dict(dict(_to_llama(ours)))
    # Not among the weights, so `to_empty` left it without values.
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config).to(job.device)
    return theirs.eval()


def _llama_config(model: ModelConfig) -> Any:
    from transformers import LlamaConfig

    # Typed as Any: `attn_implementation` is not among the arguments that it declares.
    make: Any = LlamaConfig
    return make(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_heads,
        max_position_embeddings=model.context_length,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        # No token ends an answer: all of them have the length that is asked for.
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )


def _to_llama(ours: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Our names and rows as Llama's: W_pack splits into thirds, the head's rows are scaled."""
    for name, weight in ours.state_dict().items():
        if "W_pack" in name:
            for part, third in zip("qkv", weight.chunk(3), strict=True):
                yield name.replace("W_pack", f"{part}_proj"), third
        else:
            yield name, weight
    yield "lm_head.weight", ours.head_weight().detach().to(ours.lm_head.weight.dtype)
