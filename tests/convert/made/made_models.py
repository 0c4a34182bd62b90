"""Models that were trained from a registered one, as far as a registry can tell: drawn near it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bc2.registry import Artifact, Draft, Registry, Role, stage_key

Weights = dict[str, Tensor]


def weights_of(artifact: Artifact) -> Weights:
    return {
        name: tensor
        for file in artifact.files("model")
        if file.endswith(".safetensors")
        for name, tensor in load_file(artifact.path / file).items()
    }


def trained_from(
    base: Artifact, name: str, seed: int = 1, *,
    change: Callable[[Weights], object] = lambda weights: None,
    texts: Mapping[str, bytes | None] | None = None,
    role: Role = "chat", dtype: torch.dtype | None = None, parents: bool = True,
) -> Artifact:  # fmt: skip
    """Register a model near a base, with its files.

    Args:
        change: applied to the weights at the end.
        texts: other contents of files, or None where there is to be none.
        dtype: of the weights; the base's if None.
        parents: whether it says what it was trained from.
    """
    chance = torch.Generator().manual_seed(seed)
    common = torch.Generator().manual_seed(99)
    weights = {}
    for key, tensor in sorted(weights_of(base).items()):
        wide = tensor.float()
        step = sum(torch.randn(wide.shape, generator=one) for one in (chance, common))
        weights[key] = (wide + 0.1 * wide.std() * step).to(dtype or tensor.dtype)
    change(weights)
    lineage = (base.digest,) if parents else ()
    draft = Draft(
        "checkpoint", name, stage_key("checkpoint", 1, {"name": name, "seed": seed}, lineage),
        lineage, role=role,
    )  # fmt: skip
    with Registry.open().stage(draft) as staged:
        for file in base.files():
            if not file.endswith((".safetensors", ".index.json")):
                shutil.copyfile(base.path / file, staged.path / file)
        for file, content in (texts or {}).items():
            (staged.path / file).unlink(missing_ok=True)
            if content is not None:
                (staged.path / file).write_bytes(content)
        save_file(weights, staged.path / "model.safetensors", metadata={"format": "pt"})
        return staged.publish()
