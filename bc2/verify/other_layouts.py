"""The other layouts that `bc2 verify resume` continues a run on."""

from __future__ import annotations

import os

import torch

from bc2.errors import UsageError
from bc2.recipe import Recipe
from bc2.train.device import pick_device
from bc2.train.pretrain_config import PretrainConfig
from bc2.train.rank_layout import (
    RankLayout,
    check_divides,
    fill_micro_batch,
    parse_layout,
    read_ranks,
)

#: Numbers of ranks that are tried if none are given.
USUAL = (1, 2, 4)


def other_layouts(
    recipe: Recipe, base: RankLayout, ranks: str | None, layouts: list[str] | None
) -> list[RankLayout]:
    """The layouts that were asked for, or the usual numbers of ranks that fit the machine.

    Args:
        ranks: comma-separated numbers of ranks, as ``--ranks``.
        layouts: as ``--layout``.

    Raises:
        UsageError: they cannot be read.
        RecipeError: one does not fit the recipe.
    """
    found = [parse_layout(recipe, base, text) for text in layouts or []]
    numbers = [read_ranks(text, "--ranks") for text in ranks.split(",")] if ranks else []
    found += [layout_on(recipe, base, number) for number in numbers if number != base.ranks]
    if found or ranks or layouts:
        for one in found:
            check_divides(recipe, one)
        return found
    usual = [n for n in USUAL if n != base.ranks and n <= _places(recipe)]
    return [one for n in usual if _fits(recipe, one := layout_on(recipe, base, n))]


def layout_on(recipe: Recipe, base: RankLayout, ranks: int) -> RankLayout:
    """The recipe's layout on so many ranks, without the parts that would not fit them."""
    parallel = base.parallel
    if ranks % parallel.ranks_of_a_replica:
        parallel = parallel.model_copy(update={"tensor": 1, "sequence": 1})
    group = parallel.zero_group
    if group is not None and (ranks // parallel.tensor) % group:
        parallel = parallel.model_copy(update={"zero_group": None})
    return fill_micro_batch(recipe, RankLayout(ranks, parallel, base.micro_batch))


def _fits(recipe: Recipe, layout: RankLayout) -> bool:
    try:
        check_divides(recipe, layout)
    except UsageError:
        return False
    return True


def _places(recipe: Recipe) -> int:
    """Ranks that this machine has a device, or a core, for."""
    if pick_device(recipe.get(PretrainConfig).device).type == "cuda":
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0))
