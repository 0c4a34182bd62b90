"""Adapters that were not trained: drawn, so that they change what their base says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bc2.model.adapters import is_adapters
from bc2.model.lora import add_lora
from bc2.model.lora_config import LoraConfig
from bc2.model.model_config import ModelConfig
from bc2.model.model_formulas import HeadKind
from bc2.model.saved_adapter import SCORE, write_adapter
from bc2.model.store import load_config, save_config
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Registry, stage_key

LORA = LoraConfig(rank=3, alpha=6.0)


def drawn(config: ModelConfig, lora: LoraConfig = LORA, seed: int = 5) -> dict[str, Tensor]:
    """Both matrices of every adapter, and a head of values, from a normal distribution."""
    with torch.device("meta"):
        model = Transformer(config)
        add_lora(lora)(model)
    chance = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(parameter.shape, generator=chance)
        for name, parameter in model.named_parameters()
        if is_adapters(name) or name == SCORE
    }


def adapter_of(
    registry: Registry,
    base: Artifact,
    lora: LoraConfig = LORA,
    *,
    name: str = "adapter",
    head: HeadKind | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Artifact:
    """An adapter beside a registered model, with that one's tokenizer and layout.

    Args:
        head: of the model with the adapter; that of the base if None.
    """
    config = load_config(base.path)
    if head is not None:
        config = config.model_copy(update={"head": head})
    said = {"name": name, "lora": lora.keyed(), "shape": config.keyed()}
    key = stage_key("checkpoint", 1, said, [base.digest])
    draft = Draft("checkpoint", name, key, (base.digest,), facts=facts or {}, role="adapter")
    with registry.stage(draft) as staged:
        save_config(staged.path, config)
        for file in ("tokenizer.model", "tokenizer.json", "chat.json"):
            if file in base.files():
                shutil.copyfile(base.path / file, staged.path / file)
        tensors = drawn(config, lora)
        save_file(tensors, staged.path / "model.safetensors", metadata={"format": "pt"})
        write_adapter(staged.path, lora, base)
        return staged.publish()
