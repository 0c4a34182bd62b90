"""A model laid out over a mesh, with the initial weights that one device would draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bc2.errors import RecipeError
from bc2.model.adapters import Adapter, AddAdapters, draw_adapter, is_adapters
from bc2.model.heads import HEADS
from bc2.model.lora import Lora
from bc2.model.transformer import Transformer, draw_weight
from bc2.parallel.mesh import Mesh
from bc2.parallel.sequence import cut_sequence
from bc2.parallel.sharding import TensorShard, shard_of
from bc2.parallel.state import ShapedSource
from bc2.parallel.tensor import cut_tensors

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig
    from bc2.model.model_formulas import HeadKind


def build_model(
    config: ModelConfig, mesh: Mesh, adapters: AddAdapters | None = None
) -> Transformer:
    """This rank's part of a model, on the meta device.

    Raises:
        RecipeError: there are adapters, not of low rank, which tensor parallelism cannot divide.
    """
    model = _whole(config, adapters)
    for module in model.modules():
        if mesh.tensor.size > 1 and isinstance(module, Adapter) and not isinstance(module, Lora):
            raise RecipeError(
                f"adapters of the kind {type(module).__name__} cannot be divided among "
                f"{mesh.tensor.size} tensor-parallel ranks",
                todo="set parallel.tensor = 1; parallel.zero = 3 divides the weights",
            )
    cut_tensors(model, mesh.tensor)
    cut_sequence(model, mesh.sequence)
    return model


def parts(
    config: ModelConfig, mesh: Mesh, adapters: AddAdapters | None = None
) -> dict[str, TensorShard]:
    """The shard that this rank has of each parameter, in the model's order."""
    tensor = mesh.tensor
    return {
        name: shard_of(name, shape, tensor.rank, tensor.size, heads_per_key=config.heads_per_key)
        for name, shape in _shapes(_whole(config, adapters)).items()
    }


def _whole(config: ModelConfig, adapters: AddAdapters | None) -> Transformer:
    """A model on the meta device."""
    with torch.device("meta"):
        model = Transformer(config)
        if adapters is not None:
            adapters(model)
    return model


def _shapes(model: Transformer) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


class InitialWeights:
    """The weights that `Transformer.init_weights` draws, one at a time: a `StateSource`.

    Those of adapters are drawn apart from them, and change none.
    """

    def __init__(self, config: ModelConfig, seed: int, adapters: AddAdapters | None = None):
        self.config = config
        self.seed = seed
        self._with_adapters = _whole(config, adapters) if adapters else None
        self._generator = torch.Generator().manual_seed(seed)
        self._skipped: list[tuple[str, torch.Size]] = []

    def __contains__(self, name: object) -> bool:
        return True

    def read(self, name: str, part: TensorShard, first: int, count: int) -> Tensor:
        shape = torch.Size(part.shape)
        if is_adapters(name):
            assert self._with_adapters is not None
            return _drawn_adapter(self._with_adapters, name, self.seed, part, first, count)
        if not count:
            # Nothing of it is wanted. It is drawn only if something after it is.
            self._skipped.append((name, shape))
            return torch.empty(0)
        for skipped in self._skipped:
            draw_weight(self.config, *skipped, self._generator)
        self._skipped.clear()
        whole = draw_weight(self.config, name, shape, self._generator)
        return part.of(whole).reshape(-1)[first : first + count]


def _drawn_adapter(
    model: Transformer, name: str, seed: int, part: TensorShard, first: int, count: int
) -> Tensor:
    if not count:
        return torch.empty(0)
    return part.of(draw_adapter(model, name, seed)).reshape(-1)[first : first + count]


class StartWeights:
    """A checkpoint's weights for a model that begins with them: a `StateSource`.

    The model may have another head than the checkpoint: a scalar one, say, where that has a
    language head. Then the head alone is drawn from the seed, and is the one that
    `InitialWeights` draws; so are adapters, if the checkpoint has none at all. It may be read any
    number of times.

    Args:
        config: of the model that is filled.
        stored: the checkpoint's weights, fp32, bf16 or fp16.
        seed: of what the checkpoint does not have.
        adapters: the model's adapters.

    Raises:
        RecipeError: anything else does not fit the model, with names and shapes.
    """

    def __init__(
        self,
        config: ModelConfig,
        stored: ShapedSource,
        seed: int,
        adapters: AddAdapters | None = None,
    ):
        self.config = config
        self.seed = seed
        self._stored = stored
        self._model = _whole(config, adapters)
        self._shapes = _shapes(self._model)
        #: None: the head is the embedding.
        self._head = next((name for name in self._shapes if name in HEADS), None)
        self.draws_head = _head_kind(stored.shapes) not in (None, config.head)
        """Whether the head is drawn, because the checkpoint has another one."""
        self.draws_adapters = not any(map(is_adapters, stored.shapes))
        """Whether the adapters are drawn, if there are any."""
        problems = list(self._problems(stored.shapes))
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise RecipeError(
                "the weights to start from do not fit [model]: " + "; ".join(problems[:3]) + more,
                todo="give [model] the sizes of that checkpoint; only its head may be another one",
            )

    def _problems(self, stored: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
        wanted, found = dict(self._shapes), dict(stored)
        if self.draws_head:
            wanted.pop(self._head or "", None)
            found = {name: shape for name, shape in found.items() if name not in HEADS}
        if self.draws_adapters:
            wanted = {name: shape for name, shape in wanted.items() if not is_adapters(name)}
        for name, shape in wanted.items():
            if name not in found:
                yield f"{name} {list(shape)} is missing"
            elif tuple(found[name]) != shape:
                yield f"{name} is {list(found[name])}, not {list(shape)}"
        for name in found:
            if name not in wanted:
                yield f"{name} {list(found[name])} is not in the model"

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def read(self, name: str, part: TensorShard, first: int, count: int) -> Tensor:
        if name == self._head and self.draws_head:
            return self._draw_head(part, first, count)
        if is_adapters(name) and self.draws_adapters:
            return _drawn_adapter(self._model, name, self.seed, part, first, count)
        return self._stored.read(name, part, first, count)

    def _draw_head(self, part: TensorShard, first: int, count: int) -> Tensor:
        assert self._head is not None
        drawn = InitialWeights(self.config, self.seed)
        for name, shape in self._shapes.items():
            if name == self._head:
                break
            if not is_adapters(name):
                drawn.read(name, TensorShard(shape), 0, 0)
        return drawn.read(self._head, part, first, count)


def _head_kind(shapes: Mapping[str, tuple[int, ...]]) -> HeadKind | None:
    """The kind of the head that parameters have; None: they have both."""
    language, score = (shapes.get(name) for name in HEADS)
    if language is not None and score is not None:
        return None
    if score is None:  # With none of its own, it is the embedding.
        return "language"
    return "scalar" if score[:1] == (1,) else "classes"
