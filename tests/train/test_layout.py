"""Layouts as they are typed."""

from __future__ import annotations

import pytest

from bc2.errors import UsageError
from bc2.parallel.config import ParallelConfig
from bc2.recipe import Recipe, load
from bc2.train.layout import Layout, check_fits, fill_rows, layout_of, own_layout


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Six heads, four rows a step."""
    return load("bench", ["pretrain.micro_batch=4"])


BASE = Layout(1, ParallelConfig(), 4)


@pytest.mark.parametrize(
    "text",
    ["1", "2:zero=1", "4:tensor=2,zero=3", "2:zero=2,offload_optimizer=true", "2:overlap=false"],
)
def test_what_is_typed_is_read_and_written_alike(recipe: Recipe, text: str) -> None:
    assert layout_of(recipe, BASE, text).typed == text


def test_what_is_not_said_is_as_the_recipe_has_it(recipe: Recipe) -> None:
    base = Layout(1, ParallelConfig(zero=2), 4)
    assert layout_of(recipe, base, "2:tensor=2").parallel == ParallelConfig(zero=2, tensor=2)
    assert own_layout(recipe, 2) == Layout(2, ParallelConfig(), 4)


@pytest.mark.parametrize(("ranks", "rows"), [(1, 4), (2, 2), (4, 1)])
def test_micro_batches_shrink_to_a_ranks_share(recipe: Recipe, ranks: int, rows: int) -> None:
    layout = fill_rows(recipe, Layout(ranks, ParallelConfig(), 4))
    assert layout.micro_batch == rows
    check_fits(recipe, layout)


@pytest.mark.parametrize(
    "text", ["", "0", "-1:", "a:zero=1", "2:zero", "2:zero=x", "2:overlap=1", "2:order=data"]
)
def test_what_cannot_be_read_is_refused(recipe: Recipe, text: str) -> None:
    with pytest.raises(UsageError, match="--layout"):
        layout_of(recipe, BASE, text)


def test_contradictions_are_refused(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="zero_group needs zero = 3"):
        layout_of(recipe, BASE, "2:zero=1,zero_group=2")
