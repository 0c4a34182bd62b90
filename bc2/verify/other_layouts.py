"""The other layouts that `bc2 verify resume` continues a run on."""

from __future__ import annotations

from dataclasses import replace

import torch

from bc2.errors import ResourceError, UsageError
from bc2.plan.check import check_memory_fits
from bc2.process.cores import usable_cores
from bc2.train.device import pick_device
from bc2.train.rank_layout import (
    RankLayout,
    check_divides,
    fill_micro_batch,
    parse_layout,
    read_ranks,
)
from bc2.train.training_settings import TrainingSettings

#: Numbers of ranks that are tried if none are given.
USUAL = (1, 2, 4)


def other_layouts(
    settings: TrainingSettings, base: RankLayout, ranks: str | None, layouts: list[str] | None
) -> list[RankLayout]:
    """The layouts that were asked for, or the usual numbers of ranks that fit the machine.

    Args:
        ranks: comma-separated numbers of ranks, as ``--ranks``.
        layouts: as ``--layout``.

    Raises:
        UsageError: they cannot be read.
        RecipeError: one does not fit the recipe.
        ResourceError: one does not fit into memory.
    """
    found = [parse_layout(settings, base, text) for text in layouts or []]
    numbers = [read_ranks(text, "--ranks") for text in ranks.split(",")] if ranks else []
    found += [layout_on(settings, base, number) for number in numbers if number != base.ranks]
    if found or ranks or layouts:
        for one in found:
            check_divides(settings, one)
            check_fits(settings, one)
        return found
    usual = [n for n in USUAL if n != base.ranks and n <= _places(settings)]
    return [one for n in usual if _fits(settings, one := layout_on(settings, base, n))]


def layout_on(settings: TrainingSettings, base: RankLayout, ranks: int) -> RankLayout:
    """The recipe's layout on so many ranks, without the parts that would not fit them."""
    parallel = base.parallel
    if ranks % parallel.ranks_of_a_replica:
        parallel = parallel.model_copy(update={"tensor": 1, "sequence": 1})
    group = parallel.zero_group
    if group is not None and (ranks // parallel.tensor) % group:
        parallel = parallel.model_copy(update={"zero_group": None})
    return fill_micro_batch(settings, RankLayout(ranks, parallel, base.micro_batch))


def _fits(settings: TrainingSettings, layout: RankLayout) -> bool:
    try:
        check_divides(settings, layout)
        check_fits(settings, layout)
    except (UsageError, ResourceError):
        return False
    return True


def check_fits(settings: TrainingSettings, layout: RankLayout) -> None:
    """Refuse a layout whose ranks, all of this machine, clearly need more memory than is free.

    Raises:
        ResourceError: they do.
    """
    micro_batch = layout.micro_batch or settings.training.micro_batch
    laid_out = replace(settings, parallel=layout.parallel).with_training(micro_batch=micro_batch)
    check_memory_fits(laid_out, layout.ranks, layout.ranks)


def _places(settings: TrainingSettings) -> int:
    """Ranks that this machine has a device, or a core, for."""
    if pick_device(settings.training.device).type == "cuda":
        return torch.cuda.device_count()
    return len(usable_cores())
