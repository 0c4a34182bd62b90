"""A model's weights as Hugging Face's repositories hold them: safetensors or .bin, in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

Kind = Literal["safetensors", "bin"]

#: What the files of a kind are named after.
_STEM = {"safetensors": "model", "bin": "pytorch_model"}


def write_weights(folder: Path, state: Mapping[str, Tensor], kind: Kind, shards: int = 1) -> None:
    """Write one file, or shards with their index."""
    names = list(state)
    size = -(-len(names) // shards)
    parts = [names[at : at + size] for at in range(0, len(names), size)]
    assert len(parts) == shards
    files = file_names(kind, shards)
    for file, part in zip(files, parts, strict=True):
        _write({name: state[name] for name in part}, folder / file, kind)
    if shards > 1:
        total = sum(tensor.nbytes for tensor in state.values())
        where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{_STEM[kind]}.{kind}.index.json").write_text(json.dumps(index, indent=2))


def file_names(kind: Kind, shards: int) -> list[str]:
    stem = _STEM[kind]
    if shards == 1:
        return [f"{stem}.{kind}"]
    return [f"{stem}-{n:05d}-of-{shards:05d}.{kind}" for n in range(1, shards + 1)]


def _write(state: dict[str, Tensor], path: Path, kind: Kind) -> None:
    if kind == "bin":
        torch.save(state, path)
    else:
        whole = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(whole, path, metadata={"format": "pt"})
