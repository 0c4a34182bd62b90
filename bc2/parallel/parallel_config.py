"""`[parallel]`: how a training run is laid out over ranks. It changes results by rounding only."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.parallel.layout import ORDER, Axis, LayoutFormulas
from bc2.recipe import UNKEYED, Recipe, Section

#: More ranks than any machine room has.
MOST_RANKS = 2**20


class ParallelConfig(Section, LayoutFormulas):
    """Settings of every stage that trains. The number of ranks is said where a run is started."""

    section: ClassVar[str] = "parallel"

    tensor: int = Field(1, ge=1, le=MOST_RANKS, json_schema_extra=UNKEYED)
    """Ranks that share the heads, the feed-forward channels and the vocabulary of one model."""
    sequence: int = Field(1, ge=1, le=MOST_RANKS, json_schema_extra=UNKEYED)
    """Ranks that share the tokens of a micro-batch (DeepSpeed-Ulysses, arXiv 2309.14509)."""
    zero: Literal[0, 1, 2, 3] = Field(0, json_schema_extra=UNKEYED)
    """What data-parallel ranks share (ZeRO, arXiv 1910.02054): 0 nothing; 1 optimizer states;
    2 gradients too; 3 weights too. Above 0 DeepSpeed trains, where several ranks can share."""
    zero_group: int | None = Field(None, ge=2, le=MOST_RANKS, json_schema_extra=UNKEYED)
    """With zero = 3: every group of so many ranks holds all weights between them, so that they
    are gathered inside a machine (hpZ of ZeRO++, arXiv 2306.10209), while optimizer states are
    shared by all ranks: the hierarchical partition of Baichuan 2 §2.7. None: no such copy."""
    offload_optimizer: bool = Field(False, json_schema_extra=UNKEYED)
    """Keep fp32 weights and optimizer states in the host's memory and update there (zero 1-3)."""
    overlap: bool = Field(True, json_schema_extra=UNKEYED)
    """Reduce gradients during the backward pass (zero 1-3)."""
    order: tuple[Axis, ...] = Field(ORDER, json_schema_extra=UNKEYED)
    """Which coordinate differs between neighbouring ranks, the fastest first. Neighbours share a
    machine, so what talks most comes first."""

    @field_validator("order", mode="before")
    @classmethod
    def _as_tuple(cls, order: object) -> object:
        return tuple(order) if isinstance(order, list) else order

    @model_validator(mode="after")
    def _fits(self) -> ParallelConfig:
        if sorted(self.order) != sorted(ORDER):
            raise ValueError(f"order must name each of {', '.join(ORDER)} once")
        if self.zero_group is not None and self.zero != 3:
            raise ValueError("zero_group needs zero = 3: below, every rank has all weights anyway")
        if self.zero_group is not None and self.tensor > 1:
            raise ValueError("zero_group needs tensor = 1: DeepSpeed groups neighbouring ranks")
        if self.offload_optimizer and not self.zero:
            raise ValueError("offload_optimizer needs zero = 1, 2 or 3")
        return self


def parallel_of(recipe: Recipe) -> ParallelConfig:
    """A recipe's ``[parallel]``, or one rank's."""
    return recipe.get(ParallelConfig) if recipe.has(ParallelConfig) else ParallelConfig()


def check_layout(parallel: ParallelConfig, model: ModelConfig, world: int, where: str) -> None:
    """Check that all sizes that a layout divides come out even.

    Args:
        world: ranks of the run.
        where: the recipe, for the message.

    Raises:
        RecipeError: something does not divide; it names what would.
    """
    unit = parallel.ranks_of_a_replica
    if world % unit:
        raise RecipeError(
            f"{world} ranks cannot be parted into tensor x sequence = {parallel.tensor} x "
            f"{parallel.sequence}",
            where=where,
            todo=f"start a multiple of {unit} ranks, or set parallel.tensor and .sequence to "
            f"divisors of {world}",
        )
    shared = _shared_sizes(model)
    for key, size in shared.items():
        _even(parallel.tensor, "tensor", size, f"model.{key}", where, math.gcd(*shared.values()))
    heads = model.kv_heads // parallel.tensor
    kind = "heads" if model.kv_heads == model.num_heads else "key heads"
    _even(parallel.sequence, "sequence", heads, f"{kind} of a tensor rank", where, heads)
    if parallel.zero_group and (world // parallel.tensor) % parallel.zero_group:
        raise RecipeError(
            f"parallel.zero_group = {parallel.zero_group} does not divide the "
            f"{world // parallel.tensor} ranks that share a model's states",
            where=where,
            todo=offer("parallel.zero_group", world // parallel.tensor, least=2),
        )


def _shared_sizes(model: ModelConfig) -> dict[str, int]:
    """What tensor-parallel ranks share evenly, by its key in [model]."""
    # Each key head stays with its query heads, so there is a number of ranks for both.
    heads = "num_heads" if model.num_kv_heads is None else "num_kv_heads"
    return {
        heads: model.kv_heads,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
    }


def _even(ranks: int, key: str, size: int, name: str, where: str, offered: int) -> None:
    """Args: offered: of which a divisor would do, whatever else is divided."""
    if size % ranks:
        raise RecipeError(
            f"parallel.{key} = {ranks} does not divide {name} = {size}",
            where=where,
            todo=offer(f"parallel.{key}", offered),
        )


def offer(key: str, size: int, *, least: int = 1) -> str:
    """The values of a key that divide a size, for an error message."""
    fit = [n for n in range(least, min(size, 64) + 1) if size % n == 0]
    fit += [size] if size > 64 and size >= least else []
    return f"{key} may be {', '.join(map(str, fit[:8]))}" if fit else f"leave {key} out"


def divisors(size: int) -> list[int]:
    """Every divisor of a size, in their order; in time of its square root."""
    low = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    return [*low, *(size // n for n in reversed(low) if n * n != size)]


def even_tensor(model: ModelConfig, most: int) -> list[int]:
    """The tensor-parallel sizes up to `most` that divide heads, channels and vocabulary."""
    common = math.gcd(*_shared_sizes(model).values())
    return [n for n in range(1, most + 1) if common % n == 0]
