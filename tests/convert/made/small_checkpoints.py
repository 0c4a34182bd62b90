"""Tiny random checkpoints of bc2 as they are trained: any shape, tokenizer and chat layout."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import made_baichuan
import torch
from torch import Tensor

from bc2.files import sha256_json
from bc2.generate.generation_defaults import GENERATION_FILE, GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes, save_model
from bc2.registry import Artifact, Draft, Registry, Role, stage_key
from bc2.tokenizer.chat_file import chat_bytes, chat_named
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE

#: A RoPE model of the quickstart's kind, smaller; of as many rows as `tokenizer` has pieces.
SMALL: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4,
    "context_length": 256,
}  # fmt: skip


@cache
def tokenizer() -> Tokenizer:
    """One that bc2 trains."""
    return Tokenizer.from_bytes(made_baichuan.tokenizer_bytes())


def shape(**settings: Any) -> ModelConfig:
    """A model like `SMALL`, narrower: of widths that no blocks of 32 fill."""
    narrow = {"hidden_size": 48, "intermediate_size": 80}
    return ModelConfig(**{**SMALL, **narrow, **settings})


def drawn(
    config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Weights of no special kind: norms and biases included."""
    chance = torch.Generator().manual_seed(seed)
    state = {}
    for name, size in expected_shapes(config).items():
        if len(size) == 1:
            low, high = (-0.5, 0.5) if "bias" in name else (0.5, 1.5)
            made = torch.empty(size).uniform_(low, high, generator=chance)
        else:
            made = torch.empty(size).normal_(std=0.25, generator=chance)
        if name == "lm_head.weight":  # rows of different lengths, which NormHead takes away
            made *= torch.empty(size[0], 1).uniform_(0.5, 2.0, generator=chance)
        state[name] = made.to(dtype)
    return state


def checkpoint(
    registry: Registry,
    config: ModelConfig | None = None,
    *,
    name: str = "made",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    state: Mapping[str, Tensor] | None = None,
    model: bytes | None = None,
    layout: str | None = None,
    chat: bytes | None = None,
    generation: GenerationDefaults | None = None,
    role: Role = "base",
    beside: Sequence[Path] = (),
) -> Artifact:
    """A registered checkpoint; of the same settings the same one.

    Args:
        config: `shape()` if None.
        state: the weights; `drawn` if None.
        model: a tokenizer's file; that of `tokenizer` if None.
        layout: a chat layout's name.
        chat: a layout as a file holds it, in place of a name.
        beside: other files of it.
    """
    config = config or shape()
    read = tokenizer() if model is None else Tokenizer(model)
    files = {read.file_name: read.model}
    if layout is not None:
        files[CHAT_FILE] = chat_bytes(chat_named(layout, read))
    if chat is not None:
        files[CHAT_FILE] = chat
    if generation is not None:
        files[GENERATION_FILE] = generation.to_bytes()
    said = {
        "name": name, "seed": seed, "shape": config.keyed(), "dtype": str(dtype),
        "files": sha256_json({file: data.hex() for file, data in files.items()}),
    }  # fmt: skip
    key = stage_key("checkpoint", 1, said, ())
    with registry.stage(Draft("checkpoint", name, key, role=role)) as staged:
        save_model(staged.path, config, drawn(config, seed, dtype) if state is None else state)
        for file, data in files.items():
            (staged.path / file).write_bytes(data)
        for path in beside:
            shutil.copyfile(path, staged.path / path.name)
        return staged.publish()
