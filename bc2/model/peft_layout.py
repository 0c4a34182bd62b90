"""Adapters in the layout of the peft library, beside bc2's own files, for other tools.

``adapter_config.json`` and ``adapter_model.safetensors`` go with the base as transformers has it.
Baichuan's classes have W_pack too. In those of other families queries, keys and values are three
matrices, so each gets its rows of W_pack's B, and all have the same A. The head of a reward model
is there too, as a module that peft saves whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor

from bc2.files import sync_file, write_durably
from bc2.model.adapters import INFIX, is_adapters
from bc2.model.model_config import ModelConfig
from bc2.model.store import load_config, save_tensors, weight_files

if TYPE_CHECKING:
    from bc2.model.lora_config import LoraConfig
    from bc2.registry import Artifact

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

#: What peft's names begin with.
_PREFIX = "base_model.model."
_PARTS = ("q_proj", "k_proj", "v_proj")


def write_peft(folder: Path, lora: LoraConfig, base: Artifact) -> None:
    """Write both files into the folder of a checkpoint that has the adapters already."""
    config = load_config(folder)
    packed = has_packed(config, base)
    weights = {
        name: tensor
        for file in weight_files(os.listdir(folder))
        for name, tensor in load_file(folder / file).items()
    }
    save_tensors(peft_tensors(weights, config, packed=packed), folder / WEIGHTS_FILE)
    sync_file(folder / WEIGHTS_FILE)
    text = json.dumps(peft_config(lora, base, config, packed=packed), indent=2)
    write_durably(folder / CONFIG_FILE, f"{text}\n".encode())


def has_packed(config: ModelConfig, base: Artifact) -> bool:
    """Whether the base, as transformers has it, has W_pack.

    An imported one has what its family has, and so has what was trained from it. Of what bc2
    trained from the seed, a NormHead and ALiBi are Baichuan's; a model with neither is one of the
    others.
    """
    family = family_of_model(base)
    if family is not None:
        return bool(family == "baichuan")
    return config.norm_head or config.position == "alibi"


def family_of_model(model: Artifact) -> str | None:
    """The family of the imported model that a checkpoint is, or descends from; None: of neither.

    As far as its ancestors are registered here.
    """
    from bc2.registry import Registry

    registry, found = Registry.open(), model
    while "family" not in found.manifest.facts:
        parents = [one for one in registry.parents(found) if one.manifest.kind == "checkpoint"]
        if not parents:
            return None
        found = parents[-1]  # what it began with stands last: see `Algorithm.all_inputs`
    return str(found.manifest.facts["family"])


def peft_config(
    lora: LoraConfig, base: Artifact, config: ModelConfig, *, packed: bool
) -> dict[str, Any]:
    """What peft reads of an adapter, beside its weights.

    Args:
        config: of the model with the adapter: its head says what peft makes of it.
    """
    speaks = config.head == "language"
    targets = [
        name
        for target in lora.targets
        for name in (_PARTS if target == "W_pack" and not packed else (target,))
    ]
    return {
        "base_model_name_or_path": _hub_name(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None if speaks else [config.head_module],
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM" if speaks else "SEQ_CLS",
    }


def _hub_name(base: Artifact) -> str | None:
    """``OWNER/NAME`` of a model that was imported from a hub."""
    from bc2.registry.refs import HUB, HUB_NAMES

    for name in base.manifest.facts.get(HUB_NAMES, ()):
        return str(name).removeprefix(HUB).partition("@")[0]
    return None


def peft_tensors(
    weights: Mapping[str, Tensor], config: ModelConfig, *, packed: bool
) -> dict[str, Tensor]:
    """Adapters' matrices, and a head beside them, under peft's names.

    Args:
        weights: by the names that they have in a model.
        packed: see `has_packed`.
    """
    return dict(_named(weights, config, packed=packed))


def _named(
    weights: Mapping[str, Tensor], config: ModelConfig, *, packed: bool
) -> Iterator[tuple[str, Tensor]]:
    heads = (config.num_heads, config.kv_heads, config.kv_heads)
    rows = [count * config.head_size for count in heads]
    for name, tensor in weights.items():
        if not is_adapters(name):
            yield _PREFIX + name, tensor
            continue
        place, _, matrix = name.partition(INFIX)
        above, _, module = place.rpartition(".")
        if module != "W_pack" or packed:
            yield f"{_PREFIX}{place}.{matrix}.weight", tensor
            continue
        # Copies: a file has no two tensors in one memory.
        pieces = tensor.split_with_sizes(rows) if matrix == "lora_B" else [tensor] * len(_PARTS)
        for part, piece in zip(_PARTS, pieces, strict=True):
            yield f"{_PREFIX}{above}.{part}.{matrix}.weight", piece.clone()
