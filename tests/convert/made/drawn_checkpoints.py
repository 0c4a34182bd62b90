"""Tiny random checkpoints of bc2 as they are trained: any shape, tokenizer and chat layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import made_baichuan
import torch
from torch import Tensor

from bc2.generate.generation_defaults import GENERATION_FILE, GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes, save_model
from bc2.registry import Artifact, Draft, Registry
from bc2.tokenizer.chat_file import chat_bytes, chat_named
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE

#: A RoPE model of the quickstart's kind, smaller.
SMALL = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4,
    "context_length": 256,
}  # fmt: skip


def drawn(
    config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Weights of no special kind: norms and biases included."""
    chance = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in expected_shapes(config).items():
        if len(shape) == 1:
            low, high = (-0.5, 0.5) if "bias" in name else (0.5, 1.5)
            made = torch.empty(shape).uniform_(low, high, generator=chance)
        else:
            made = torch.empty(shape).normal_(std=0.25, generator=chance)
        if name == "lm_head.weight":  # rows of different lengths, which NormHead takes away
            made *= torch.empty(shape[0], 1).uniform_(0.5, 2.0, generator=chance)
        state[name] = made.to(dtype)
    return state


def checkpoint(
    home: Path,
    config: ModelConfig,
    *,
    state: Mapping[str, Tensor] | None = None,
    tokenizer: bytes | None = None,
    layout: str | None = None,
    chat: bytes | None = None,
    generation: GenerationDefaults | None = None,
) -> Artifact:
    """A registered checkpoint.

    Args:
        home: of a registry.
        tokenizer: a SentencePiece model of 640 pieces if None.
        layout: a chat layout's name.
        chat: a layout as a file holds it, in place of a name.
    """
    tokenizer = made_baichuan.tokenizer_bytes() if tokenizer is None else tokenizer
    read = Tokenizer(tokenizer)
    files = {read.file_name: tokenizer}
    if layout is not None:
        files[CHAT_FILE] = chat_bytes(chat_named(layout, read))
    if chat is not None:
        files[CHAT_FILE] = chat
    if generation is not None:
        files[GENERATION_FILE] = generation.to_bytes()
    key = hashlib.sha256(repr((config, sorted(files.items()))).encode()).hexdigest()
    with Registry.open(home).stage(Draft("checkpoint", "made", key, role="base")) as staged:
        save_model(staged.path, config, drawn(config) if state is None else state)
        for name, data in files.items():
            (staged.path / name).write_bytes(data)
        return staged.publish()
