"""What each of the ranks that share a batch's tokens is given of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bc2.data.loader import Batch, pack
from bc2.parallel.mesh import Group
from bc2.parallel.own_batch import OwnBatch, own_batch

RANKS = (0, 1, 2)


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(0)
    made = pack(rng.integers(3, 9, (2, 7)), np.zeros(2, np.int64), eos_id=4)
    return replace(
        made,
        token_fields={"mask": rng.random((2, 6)) < 0.5, "old": rng.standard_normal((2, 6))},
        sample_fields={"reward": np.array([0.5, -1.0])},
        extra_weights={"pairs": 1},
    )


def test_ranks_have_each_token_once_and_all_of_the_rest(batch: Batch) -> None:
    each = [own_batch(batch, Group(RANKS, rank)) for rank in RANKS]
    assert all(isinstance(own, OwnBatch) and own.labels.shape == (4,) for own in each)
    assert np.array_equal(np.concatenate([own.labels for own in each]), batch.labels.flatten())
    for name, values in batch.token_fields.items():
        cut = [own.token_fields[name] for own in each]
        assert np.array_equal(np.concatenate(cut), values.flatten())
        assert cut[0].dtype == values.dtype
    for own in each:
        assert own.tokens is batch.tokens
        assert own.cu_seqlens is batch.cu_seqlens
        assert own.sample_fields is batch.sample_fields
        assert own.weights == batch.weights


def test_a_rank_that_has_all_tokens_has_the_batch_itself(batch: Batch) -> None:
    assert own_batch(batch, Group()) is batch


def test_tokens_that_do_not_divide_are_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="12 tokens of a micro-batch do not divide among 5 ranks"):
        own_batch(batch, Group(tuple(range(5)), 4))
