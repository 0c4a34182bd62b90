"""Layouts as they are typed."""

from __future__ import annotations

import pytest

from bc2.errors import UsageError
from bc2.parallel.parallel_config import ParallelConfig
from bc2.recipe import load
from bc2.train.rank_layout import (
    RankLayout,
    check_divides,
    fill_micro_batch,
    parse_layout,
    recipe_layout,
)
from bc2.train.training_settings import TrainingSettings


@pytest.fixture(scope="module")
def recipe() -> TrainingSettings:
    """Six heads, four sequences a step."""
    return TrainingSettings.of(load("bench", ["pretrain.micro_batch=4"]), trains=False)


BASE = RankLayout(1, ParallelConfig(), 4)


@pytest.mark.parametrize(
    "text",
    ["1", "2:zero=1", "4:tensor=2,zero=3", "2:zero=2,offload_optimizer=true", "2:overlap=false"],
)
def test_what_is_typed_is_read_and_written_alike(recipe: TrainingSettings, text: str) -> None:
    assert parse_layout(recipe, BASE, text).typed == text


def test_what_is_not_said_is_as_the_recipe_has_it(recipe: TrainingSettings) -> None:
    base = RankLayout(1, ParallelConfig(zero=2), 4)
    assert parse_layout(recipe, base, "2:tensor=2").parallel == ParallelConfig(zero=2, tensor=2)
    assert recipe_layout(recipe, 2) == RankLayout(2, ParallelConfig(), 4)


@pytest.mark.parametrize(("ranks", "rows"), [(1, 4), (2, 2), (4, 1)])
def test_micro_batches_shrink_to_a_ranks_share(
    recipe: TrainingSettings, ranks: int, rows: int
) -> None:
    layout = fill_micro_batch(recipe, RankLayout(ranks, ParallelConfig(), 4))
    assert layout.micro_batch == rows
    check_divides(recipe, layout)


@pytest.mark.parametrize(
    "text", ["", "0", "-1:", "a:zero=1", "2:zero", "2:zero=x", "2:overlap=1", "2:order=data"]
)
def test_what_cannot_be_read_is_refused(recipe: TrainingSettings, text: str) -> None:
    with pytest.raises(UsageError, match="--layout"):
        parse_layout(recipe, BASE, text)


def test_contradictions_are_refused(recipe: TrainingSettings) -> None:
    with pytest.raises(UsageError, match="zero_group needs zero = 3"):
        parse_layout(recipe, BASE, "2:zero=1,zero_group=2")
