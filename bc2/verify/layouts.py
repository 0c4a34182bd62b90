"""Which layouts a run is continued on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from bc2.errors import UsageError
from bc2.model.config import ModelConfig
from bc2.parallel.config import ParallelConfig, check_layout
from bc2.recipe import Recipe
from bc2.train.config import PretrainConfig, check_batches
from bc2.train.device import pick_device

#: Numbers of ranks that are tried if none are said.
USUAL = (1, 2, 4)


@dataclass(frozen=True)
class Layout:
    """So many ranks, laid out so."""

    ranks: int
    parallel: ParallelConfig
    micro_batch: int | None
    """Sequences a rank sees at once; None: what the recipe's "auto" comes to."""

    def __str__(self) -> str:
        plain = ParallelConfig().model_dump()
        own = {k: v for k, v in self.parallel.model_dump().items() if v != plain[k]}
        told = [f"{key} {'x'.join(v) if key == 'order' else v}" for key, v in own.items()]
        return ", ".join([f"{self.ranks} rank{'s' if self.ranks > 1 else ''}", *told])

    def as_json(self) -> dict[str, Any]:
        parallel = self.parallel.model_dump(mode="json")
        return {"ranks": self.ranks, "micro_batch": self.micro_batch, "parallel": parallel}


def own_layout(recipe: Recipe, ranks: int) -> Layout:
    """The recipe's, on the ranks that were asked for."""
    parallel = recipe.get(ParallelConfig) if recipe.has(ParallelConfig) else ParallelConfig()
    micro = recipe.get(PretrainConfig).micro_batch
    return Layout(ranks, parallel, None if micro == "auto" else micro)


def other_layouts(
    recipe: Recipe, base: Layout, ranks: str | None, said: list[str] | None
) -> list[Layout]:
    """Those to continue on: what was asked for, or the usual numbers that fit the machine.

    Raises:
        UsageError: they cannot be read.
        RecipeError: one does not fit the recipe.
    """
    found = [layout_of(recipe, base, text) for text in said or []]
    numbers = [_number(text) for text in ranks.split(",")] if ranks else []
    found += [simplest(recipe, base, number) for number in numbers if number != base.ranks]
    if found or ranks or said:
        for one in found:
            _check(recipe, one)
        return found
    usual = [n for n in USUAL if n != base.ranks and n <= _places(recipe)]
    return [one for n in usual if _fits(recipe, one := simplest(recipe, base, n))]


def _number(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise UsageError(f"--ranks {text!r} is no number of ranks", todo="e.g. --ranks 1,2,4")
    return int(text)


def layout_of(recipe: Recipe, base: Layout, text: str) -> Layout:
    """Read ``RANKS:key=value,key=value``; what is not said is as the recipe has it."""
    number, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key.strip() not in ("tensor", "sequence", "zero", "zero_group") or not equals:
            raise UsageError(
                f"--layout {text!r}: cannot read {part!r}",
                todo="e.g. --layout 4:zero=2,tensor=2; also sequence and zero_group",
            )
        values[key.strip()] = _number(value) if value != "0" else 0
    try:
        parallel = ParallelConfig(**{**base.parallel.model_dump(), **values})
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--layout {text!r}: {what}") from None
    return _with_rows(recipe, Layout(_number(number), parallel, base.micro_batch))


def simplest(recipe: Recipe, base: Layout, ranks: int) -> Layout:
    """The recipe's layout on so many ranks, without the parts that would not fit them."""
    parallel = base.parallel
    if ranks % parallel.ranks_of_a_replica:
        parallel = parallel.model_copy(update={"tensor": 1, "sequence": 1})
    group = parallel.zero_group
    if group is not None and (ranks // parallel.tensor) % group:
        parallel = parallel.model_copy(update={"zero_group": None})
    return _with_rows(recipe, Layout(ranks, parallel, base.micro_batch))


def _with_rows(recipe: Recipe, layout: Layout) -> Layout:
    """The largest micro-batch, up to the recipe's, that shares a step among the ranks."""
    training = recipe.get(PretrainConfig)
    share = training.batch_rows // max(1, layout.ranks // layout.parallel.ranks_of_a_replica)
    most = layout.micro_batch or (1 if layout.ranks > 1 else 0)
    fit = [n for n in range(1, most + 1) if share % n == 0]
    return Layout(layout.ranks, layout.parallel, fit[-1] if fit else layout.micro_batch)


def _check(recipe: Recipe, layout: Layout) -> None:
    check_layout(layout.parallel, recipe.get(ModelConfig), layout.ranks, str(layout))
    training = recipe.get(PretrainConfig)
    if layout.micro_batch is not None:
        training = training.model_copy(update={"micro_batch": layout.micro_batch})
    check_batches(training, layout.parallel, layout.ranks)


def _fits(recipe: Recipe, layout: Layout) -> bool:
    try:
        _check(recipe, layout)
    except UsageError:
        return False
    return True


def _places(recipe: Recipe) -> int:
    """Ranks that this machine has a device, or a core, for."""
    if pick_device(recipe.get(PretrainConfig).device).type == "cuda":
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0))
