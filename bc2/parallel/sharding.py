"""The part of each parameter that a tensor-parallel rank holds.

Column-parallel matrices are cut by rows of the weight (their outputs), row-parallel ones by
its columns (their inputs), after Megatron-LM (arXiv 1909.08053, section 3). W_pack holds Q, K
and V one after another, each cut by heads, so a rank has three slices of its rows. The embedding
and a language head are cut by rows: by the vocabulary. Norms and the few rows of another head
(`score`) are whole on every rank. Of an adapter of low rank (`bc2.model.lora`) one factor is cut as
the weight that it stands beside: B [O, r] by its outputs, or A [r, I] by its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bc2.model.adapters import MODULE
from bc2.model.lora import A, B

#: The modules that are cut, by their last name, and how.
_BY_ROWS = {"gate_proj", "up_proj", "embed_tokens", "lm_head"}
ROW_PARALLEL = {"o_proj", "down_proj"}
_BY_HEADS = {"W_pack"}


@dataclass(frozen=True)
class TensorShard:
    """The part of a parameter that a rank holds.

    Attributes:
        shape: of the whole parameter.
        dim: the dimension that is cut; None: the rank has all of it.
        runs: beginning and end of each slice along `dim`, in the order of the part.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    runs: tuple[tuple[int, int], ...] = ()

    def of(self, whole: Tensor) -> Tensor:
        """The part of a whole parameter: a copy unless it is all of it."""
        if self.dim is None:
            return whole
        return torch.cat([whole.narrow(self.dim, a, b - a) for a, b in self.runs], self.dim)

    @property
    def shard_shape(self) -> tuple[int, ...]:
        if self.dim is None:
            return self.shape
        held = sum(b - a for a, b in self.runs)
        return (*self.shape[: self.dim], held, *self.shape[self.dim + 1 :])


def shard_of(
    name: str, shape: tuple[int, ...], rank: int, ranks: int, *, heads_per_key: int = 1
) -> TensorShard:
    """The shard that rank `rank` of `ranks` has of a parameter of this name and whole shape.

    Args:
        heads_per_key: query heads of each key head, by which W_pack's rows are queries.
    """
    dim = cut_dimension(name)
    if ranks == 1 or dim is None:
        return TensorShard(shape)
    kinds = (heads_per_key, 1, 1) if _module_of(name) in _BY_HEADS else (1,)
    unit = shape[dim] // sum(kinds) // ranks
    runs, first = [], 0
    for kind in kinds:
        size = kind * unit
        runs.append((first + rank * size, first + (rank + 1) * size))
        first += ranks * size
    return TensorShard(shape, dim, tuple(runs))


def cut_dimension(name: str) -> int | None:
    """The dimension in which tensor parallelism cuts a parameter; None: each rank has all of it."""
    *path, inner = name.split(".")
    module, factors = _module_of(name), path[-1:] == [MODULE]
    if module in ROW_PARALLEL and (not factors or inner == A):
        return 1
    if module in _BY_ROWS | _BY_HEADS and (not factors or inner == B):
        return 0
    return None


def _module_of(name: str) -> str:
    """The last name of the module that has a parameter, or beside whose weight an adapter is."""
    *path, _ = name.split(".")
    return path[-2] if path[-1] == MODULE else path[-1]
