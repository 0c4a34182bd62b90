"""Helpers of softmax on a chunk of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.model.softmax import row_max


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 1500), seed=st.integers(0, 9))
def test_row_max_is_max(rows, columns, seed):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    value, where = row_max(x)
    assert torch.equal(value[:, 0], x.max(dim=-1).values)
    assert torch.equal(where[:, 0], x.max(dim=-1).indices)


@pytest.mark.parametrize("at", [0, 700, 1023, 1024, 1100])
def test_row_max_passes_nan_on(at):
    x = torch.randn(2, 1101)
    x[1, at] = float("nan")
    value, where = row_max(x)
    assert not value[0].isnan()
    assert value[1].isnan()
    assert where[1, 0] == at
