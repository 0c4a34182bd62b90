"""Shapes for a size."""

from __future__ import annotations

import pytest

from bc2.errors import UsageError
from bc2.scaling.shapes import _candidates, _of, nearest_shape


@pytest.mark.parametrize("params", [2e6, 1e7, 5e7, 3e8, 1.5e9, 6.5e9, 1.3e10, 7e10, 4e11])
def test_a_shape_is_near_its_size_and_in_proportion(params: float) -> None:
    shape = nearest_shape(params, 125_696)
    assert shape.num_params_non_embedding() == pytest.approx(params, rel=0.08)
    assert 32 <= shape.hidden_size / shape.num_layers <= 260
    assert shape.hidden_size % shape.num_heads == 0
    assert shape.intermediate_size % 128 == 0
    assert shape.intermediate_size >= shape.hidden_size * 8 / 3


def test_the_7b_shape_for_its_size() -> None:
    shape = nearest_shape(6_476_271_616, 125_696)
    assert (shape.hidden_size, shape.num_layers, shape.num_heads) == (4096, 32, 32)


def test_all_parameters_count_embedding_and_head() -> None:
    shape = nearest_shape(7.5e9, 125_696, total=True)
    assert shape.num_params() == pytest.approx(7.5e9, rel=0.05)


@pytest.mark.parametrize("params", [5e3, 1e14])
def test_no_shape(params: float) -> None:
    with pytest.raises(UsageError, match="no shape has about"):
        nearest_shape(params, 125_696)


@pytest.mark.parametrize("total", [False, True])
def test_sizes_that_are_compared_are_those_of_the_shapes(total: bool) -> None:
    for candidate in list(_candidates(1000))[::997]:
        shape = _of(candidate.width, candidate.layers, 1000)
        counted = shape.num_params() if total else shape.num_params_non_embedding()
        assert candidate.size(total) == counted


@pytest.mark.parametrize("params", [0.0, float("inf")])
def test_a_law_without_a_best_size_has_no_shape(params: float) -> None:
    with pytest.raises(UsageError, match="no shape has about"):
        nearest_shape(params, 1000)
