"""Sums over the tokens of samples on one rank, against loops over tokens in float64.

`tests/parallel/test_pairs.py` has them on several ranks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bc2.data.loader import IGNORED, SAMPLE, Batch, pack
from bc2.parallel.mesh import Group
from bc2.parallel.own_batch import own_batch
from bc2.train.sample_sums import counted_once, mean_by_sample, sum_by_sample, to_tokens

R, S = 3, 4
#: Three samples in two rows and a half: out of order, one without a token, and padding.
IDS = np.array([[2, 2, 0, 0], [0, IGNORED, 2, 3], [3, 3, IGNORED, IGNORED]])


@pytest.fixture
def by_row() -> Batch:
    rows = np.random.default_rng(0).integers(3, 9, (R, S + 1))
    rows[2] = [3, *[IGNORED] * S]
    return pack(rows, np.zeros(R, np.int64), eos_id=4)


@pytest.fixture
def packed(by_row: Batch) -> Batch:
    return replace(by_row, token_fields={SAMPLE: IDS}, packed_samples=4)


def ids_of(batch: Batch) -> list[int]:
    if batch.packed_samples is None:
        return [row for row in range(R) for _ in range(S)]
    return [int(each) for each in IDS.flatten()]


@pytest.mark.parametrize("kind", ["by_row", "packed"])
def test_sums_means_and_their_gradients(kind: str, request: pytest.FixtureRequest) -> None:
    batch: Batch = request.getfixturevalue(kind)
    count, ids = (4 if kind == "packed" else R), ids_of(batch)
    values = torch.randn(R * S, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sums, means = sum_by_sample(values, batch), mean_by_sample(values, batch)
    back = to_tokens(sums, batch)
    assert (sums.shape, means.shape, back.shape) == ((count,), (count,), (R * S,))
    assert sums.dtype == means.dtype == torch.float64
    labels = batch.labels.flatten()
    for sample in range(count):
        mine = [at for at, each in enumerate(ids) if each == sample]
        known = [at for at in mine if labels[at] != IGNORED]
        assert sums[sample].item() == pytest.approx(sum(values[at].item() for at in mine))
        right = sum(values[at].item() for at in known) / max(1, len(known))
        assert means[sample].item() == pytest.approx(right)
    for at, sample in enumerate(ids):
        assert back[at] == (0 if sample == IGNORED else sums[sample])
    (2 * sums * torch.arange(1, count + 1)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0 if each == IGNORED else 2 * (each + 1) for each in ids]


def test_what_has_no_label_is_in_no_mean(by_row: Batch) -> None:
    values = torch.ones(R * S)
    values[torch.from_numpy(by_row.labels.flatten() == IGNORED)] = float("inf")
    values.requires_grad_()
    mean = mean_by_sample(values, by_row)
    supervised = (by_row.labels != IGNORED).any(axis=1)
    assert mean.tolist() == [float(each) for each in supervised]
    assert not supervised.all()
    mean.sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_a_sum_keeps_the_digits_of_a_long_sample(by_row: Batch) -> None:
    values = torch.full((R * S,), 1e-4)
    values[0] = 4096.0  # beside which fp32 has no ten thousandths
    right = 4096 + (S - 1) * float(torch.tensor(1e-4))
    assert sum_by_sample(values, by_row)[0].item() == pytest.approx(right, rel=1e-12)


def test_several_numbers_of_a_token(packed: Batch) -> None:
    values = torch.randn(R * S, 2, generator=torch.Generator().manual_seed(0))
    sums = sum_by_sample(values, packed)
    for column in range(2):
        assert torch.equal(sums[:, column], sum_by_sample(values[:, column], packed))
    assert to_tokens(sums, packed).shape == (R * S, 2)


def test_values_of_other_tokens_are_refused(by_row: Batch) -> None:
    with pytest.raises(ValueError, match="11 values for 12 tokens"):
        sum_by_sample(torch.zeros(R * S - 1), by_row)


@pytest.mark.parametrize("kind", ["by_row", "packed"])
def test_ranks_that_share_tokens_know_whose_theirs_are(
    kind: str, request: pytest.FixtureRequest
) -> None:
    batch: Batch = request.getfixturevalue(kind)
    values = torch.arange(1.0, batch.num_samples + 1)
    ranks = tuple(range(6))
    each = [to_tokens(values, own_batch(batch, Group(ranks, rank))) for rank in ranks]
    assert torch.equal(torch.cat(each), to_tokens(values, batch))


def test_shares_of_a_number_sum_up_to_it(by_row: Batch) -> None:
    value = torch.tensor(5.0)
    assert counted_once(value, by_row) is value
    shares = [counted_once(value, own_batch(by_row, Group((0, 1, 2), rank))) for rank in range(3)]
    assert sum(shares).item() == pytest.approx(5)  # type: ignore[union-attr]
