"""Shapes for a size."""

from __future__ import annotations

import pytest

from bc2.errors import UsageError
from bc2.scaling.shapes import nearest_shape


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
