"""Checkpoints of random weights with a small real tokenizer, as bc2 registers them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import made_baichuan
import torch
from torch import Tensor

from bc2.generate.generation_defaults import GENERATION_FILE, GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Registry, Role, stage_key
from bc2.tokenizer.chat_file import chat_bytes, chat_named
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE, MODEL_FILE


@cache
def tokenizer() -> Tokenizer:
    """One that bc2 trains, of 600 pieces."""
    return Tokenizer.from_bytes(made_baichuan.tokenizer_bytes())


def shape(**settings: Any) -> ModelConfig:
    """A tiny model of as many rows as the tokenizer has pieces; weights large enough to differ."""
    return ModelConfig(
        **{
            "vocab_size": tokenizer().vocab_size, "hidden_size": 48, "intermediate_size": 80,
            "num_layers": 2, "num_heads": 4, "context_length": 256, "initializer_range": 0.2,
            **settings,
        }
    )  # fmt: skip


def state_of(
    config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Random weights, norms too."""
    chance = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    model.init_weights(chance)
    state = model.state_dict()
    for tensor in state.values():
        if tensor.dim() == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=chance))
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def checkpoint(
    registry: Registry,
    name: str = "made",
    *,
    config: ModelConfig | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    state: dict[str, Tensor] | None = None,
    chat: str | None = "baichuan",
    generation: GenerationDefaults | None = None,
    role: Role = "base",
    parents: tuple[str, ...] = (),
    beside: Sequence[Path] = (),
) -> Artifact:
    """Register a model; of the same name and seed the same one.

    Args:
        beside: other files of it.
    """
    config = config or shape()
    said = {"name": name, "seed": seed, "shape": config.keyed(), "dtype": str(dtype)}
    draft = Draft("checkpoint", name, stage_key("checkpoint", 1, said, parents), parents, role=role)
    with registry.stage(draft) as staged:
        save_model(staged.path, config, state or state_of(config, dtype, seed))
        (staged.path / MODEL_FILE).write_bytes(tokenizer().model)
        if chat is not None:
            (staged.path / CHAT_FILE).write_bytes(chat_bytes(chat_named(chat, tokenizer())))
        if generation is not None:
            (staged.path / GENERATION_FILE).write_bytes(generation.to_bytes())
        for path in beside:
            shutil.copyfile(path, staged.path / path.name)
        return staged.publish()
