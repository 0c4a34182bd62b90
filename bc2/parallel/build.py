"""A model laid out over a mesh, with the initial weights that one device would draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bc2.model.transformer import Transformer, draw_weight
from bc2.parallel.mesh import Mesh
from bc2.parallel.sequence import cut_sequence
from bc2.parallel.sharding import TensorShard, shard_of
from bc2.parallel.tensor import cut_tensors

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig


def build_model(config: ModelConfig, mesh: Mesh) -> Transformer:
    """This rank's part of a model, on the meta device."""
    with torch.device("meta"):
        model = Transformer(config)
    cut_tensors(model, mesh.tensor)
    cut_sequence(model, mesh.sequence)
    return model


def parts(config: ModelConfig, mesh: Mesh) -> dict[str, TensorShard]:
    """The shard that this rank has of each parameter, in the model's order."""
    with torch.device("meta"):
        whole = Transformer(config)
    tensor = mesh.tensor
    return {
        name: shard_of(name, tuple(parameter.shape), tensor.rank, tensor.size)
        for name, parameter in whole.named_parameters()
    }


class InitialWeights:
    """The weights that `Transformer.init_weights` draws, one at a time: a `StateSource`."""

    def __init__(self, config: ModelConfig, seed: int):
        self.config = config
        self._generator = torch.Generator().manual_seed(seed)
        self._skipped: list[tuple[str, torch.Size]] = []

    def __contains__(self, name: object) -> bool:
        return True

    def read(self, name: str, part: TensorShard, first: int, count: int) -> Tensor:
        shape = torch.Size(part.shape)
        if not count:
            # Nothing of it is wanted. It is drawn only if something after it is.
            self._skipped.append((name, shape))
            return torch.empty(0)
        for skipped in self._skipped:
            draw_weight(self.config, *skipped, self._generator)
        self._skipped.clear()
        whole = draw_weight(self.config, name, shape, self._generator)
        return part.of(whole).reshape(-1)[first : first + count]
