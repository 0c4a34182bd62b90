"""The head's loss over a sharded vocabulary, against the whole head and plain float64.

Ranks are threads that meet at a barrier, so that a case takes milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bc2.errors import DataError
from bc2.model.head_loss import IGNORE, head_loss

#: hidden, weight, labels
Given = tuple[Tensor, Tensor, Tensor]
#: loss, Σ CE, Σ z, Σ z², gradient of hidden, gradient of weight
Found = tuple[list[float], Tensor, Tensor]
Reduce = Callable[[Tensor, Tensor], Tensor]


class Meeting:
    """Where threads leave what they have and take what all left."""

    def __init__(self, ranks: int):
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.left: list[Tensor] = [torch.empty(0)] * ranks

    def all(self, rank: int, x: Tensor, reduce: Reduce) -> Tensor:
        self.left[rank] = x.clone()
        self.barrier.wait()
        total = self.left[0]
        for other in self.left[1:]:
            assert (other.shape, other.dtype) == (total.shape, total.dtype)
            total = reduce(total, other)
        self.barrier.wait()
        return x.copy_(total)


@dataclass
class Shard:
    """`VocabularyShard` of a thread."""

    meeting: Meeting
    rank: int
    rows: int
    size: int
    maximum: Reduce

    @property
    def first(self) -> int:
        return self.rank * self.rows

    def max_(self, x: Tensor) -> Tensor:
        return self.meeting.all(self.rank, x, self.maximum)

    def min_(self, x: Tensor) -> Tensor:
        return self.meeting.all(self.rank, x, torch.minimum)

    def sum_(self, x: Tensor) -> Tensor:
        return self.meeting.all(self.rank, x, torch.add)


def sharded(
    given: Given, ranks: int, maximum: Reduce = torch.maximum, **options: Any
) -> list[Found]:
    """What each rank gets: its own rows' gradient last."""
    hidden, weight, labels = given
    rows = len(weight) // ranks
    meeting = Meeting(ranks)

    def run(rank: int) -> Found:
        try:
            mine = weight[rank * rows : (rank + 1) * rows]
            shard = Shard(meeting, rank, rows, len(weight), maximum)
            return one((hidden, mine, labels), shard=shard, **options)
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


def one(given: Given, **options: Any) -> Found:
    hidden, weight = (x.detach().clone().requires_grad_() for x in given[:2])
    out = head_loss(hidden, weight, given[2], **options)
    out.loss_sum.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    sums = [x.item() for x in (out.loss_sum, out.ce_sum, out.z_sum, out.z2_sum)]
    return sums, hidden.grad, weight.grad


def naive(given: Given, z_weight: float, norm_head: bool) -> Found:
    """All logits at once in float64; the largest is the first of equal ones."""
    hidden, weight = (x.detach().double().requires_grad_() for x in given[:2])
    known = given[2] != IGNORE
    rows = F.normalize(weight, dim=-1) if norm_head else weight
    logits = (hidden @ rows.t())[known]
    ce = F.cross_entropy(logits, given[2][known], reduction="none")
    top = (logits == logits.amax(-1, keepdim=True)).byte().argmax(-1, keepdim=True)
    z = logits.gather(1, top)
    loss = (ce + z_weight * z[:, 0].square()).sum()
    grads = torch.autograd.grad(loss, (hidden, weight))
    return [x.item() for x in (loss, ce.sum(), z.sum(), z.square().sum())], *grads


def inputs(
    tokens: int, vocab: int, size: int, dtype: torch.dtype, *, seed: int, masked: float = 0.3
) -> Given:
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, size, generator=g).to(dtype) for n in (tokens, vocab))
    labels = torch.randint(vocab, (tokens,), generator=g)
    labels[torch.rand(tokens, generator=g) < masked] = IGNORE
    return hidden, weight, labels


def check(found: list[Found], expected: Found, *, sums: float, grads: float) -> None:
    """Relative: of the sums each, of the gradients the norm of what is off."""
    scale = abs(expected[0][1]) + 1e-9
    for got in found:
        assert got[0] == found[0][0]
        assert got[0] == pytest.approx(expected[0], rel=sums, abs=sums * scale)
        assert torch.equal(got[1], found[0][1])
    off(found[0][1], expected[1], grads)
    off(torch.cat([got[2] for got in found]), expected[2], grads)


def off(found: Tensor, expected: Tensor, most: float) -> None:
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).norm()
    assert difference <= most * expected.double().norm() + 1e-30


#: Relative errors of sums and of gradients, against the whole head and against float64.
EXACT = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2e-2, 2e-2),
}


@settings(max_examples=120, deadline=None)
@given(
    ranks=st.sampled_from([2, 4]),
    rows=st.sampled_from([1, 3, 50, 300, 600]),
    tokens=st.integers(1, 20),
    chunk=st.sampled_from([None, 1, 3, 8]),
    z_weight=st.sampled_from([0.0, 2e-4, 0.1]),
    norm_head=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_shards_give_what_the_whole_head_gives(
    ranks: int, rows: int, tokens: int, chunk: int | None, z_weight: float, norm_head: bool,
    dtype: torch.dtype, masked: float, seed: int,
) -> None:  # fmt: skip
    given_ = inputs(tokens, ranks * rows, 6, dtype, seed=seed, masked=masked)
    options = {"z_weight": z_weight, "norm_head": norm_head, "chunk_tokens": chunk}
    found = sharded(given_, ranks, **options)
    sums, grads = EXACT[dtype]
    check(found, one(given_, **options), sums=sums, grads=grads)
    if dtype != torch.bfloat16:
        check(found, naive(given_, z_weight, norm_head), sums=sums, grads=grads)


def test_an_fp32_weight_beside_bf16_hidden_states() -> None:
    hidden, weight, labels = inputs(200, 1200, 32, torch.float32, seed=1)
    mixed = hidden.bfloat16(), weight, labels
    found = sharded(mixed, 4, z_weight=2e-4)
    assert found[0][1].dtype == torch.bfloat16
    assert found[0][2].dtype == torch.float32
    check(found, one(mixed, z_weight=2e-4), sums=1e-3, grads=1e-2)
    check(found, naive((hidden, weight, labels), 2e-4, True), sums=1e-3, grads=1e-2)


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("place", ["first", "last"])
def test_labels_of_one_shard_alone(rank: int, place: str) -> None:
    hidden, weight, labels = inputs(9, 40, 6, torch.float64, seed=rank)
    labels[labels != IGNORE] = rank * 10 + (0 if place == "first" else 9)
    given_ = hidden, weight, labels
    found = sharded(given_, 4, z_weight=0.1, chunk_tokens=4)
    check(found, naive(given_, 0.1, True), sums=1e-12, grads=1e-11)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("norm_head", [True, False])
def test_of_equal_largest_logits_the_first_has_the_gradient(
    norm_head: bool, dtype: torch.dtype
) -> None:
    """Numbers without rounding, so that logits are equal to the bit in every shard."""
    g = torch.Generator().manual_seed(0)
    weight = (torch.randint(2, (16, 4), generator=g) * 2 - 1).to(dtype)
    hidden = (torch.randint(2, (30, 4), generator=g) * 8 - 4).to(dtype)
    labels = torch.randint(16, (30,), generator=g)
    logits = hidden.double() @ weight.double().t()
    equal = logits == logits.amax(-1, keepdim=True)
    shards = equal.view(30, 4, 4).any(-1).sum(-1)
    assert (shards > 1).sum() > 5, "no ties across shards to test"
    assert (equal.sum(-1) > shards).any(), "no ties within a shard to test"
    found = sharded((hidden, weight, labels), 4, z_weight=0.3, norm_head=norm_head)
    expected = naive((hidden, weight, labels), 0.3, norm_head)
    loose = 1e-2 if dtype == torch.bfloat16 else 1e-5
    check(found, expected, sums=loose, grads=loose)


#: gloo and NCCL do not say what a maximum makes of NaN: taken over, or passed over.
MAXIMA = {"taken": torch.maximum, "passed": torch.fmax}


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("maximum", MAXIMA.values(), ids=MAXIMA)
@pytest.mark.parametrize("where", ["hidden", "first rows", "last rows", "one row", "infinite row"])
def test_nan_is_never_silently_finite(where: str, maximum: Reduce, dtype: torch.dtype) -> None:
    hidden, weight, labels = inputs(7, 40, 6, dtype, seed=2, masked=0.0)
    labels[0] = 11
    if where == "hidden":
        hidden[3] = torch.nan
    elif where == "infinite row":
        weight[25], hidden[:, 0] = 0.0, 1.0
        weight[25, 0] = torch.inf
    else:
        rows = {"first rows": slice(0, 10), "last rows": slice(30, 40), "one row": 25}[where]
        weight[rows] = torch.nan
    found = sharded((hidden, weight, labels), 4, maximum, z_weight=2e-4, norm_head=False)
    alone = one((hidden, weight, labels), z_weight=2e-4, norm_head=False)
    for sums, grad_hidden, _ in found:
        assert all(value != value for value in sums[:2])
        assert [value != value for value in sums] == [value != value for value in alone[0]]
        assert grad_hidden.isnan().any()


def test_a_label_outside_the_whole_vocabulary_is_an_error() -> None:
    hidden, weight, labels = inputs(3, 8, 6, torch.float32, seed=0)
    labels[:] = 8
    with pytest.raises(DataError, match="label 8 is outside the vocabulary of 8"):
        sharded((hidden, weight, labels), 2, z_weight=0.0)


def test_without_gradients_the_sums_are_the_same() -> None:
    given_ = inputs(20, 40, 6, torch.float32, seed=5)
    expected = [found[0] for found in sharded(given_, 2, z_weight=0.1)]
    meeting = Meeting(2)

    def run(rank: int) -> list[float]:
        shard = Shard(meeting, rank, 20, 40, torch.maximum)
        mine = given_[1][rank * 20 : (rank + 1) * 20]
        with torch.no_grad():
            out = head_loss(given_[0], mine, given_[2], z_weight=0.1, shard=shard)
        return [x.item() for x in (out.loss_sum, out.ce_sum, out.z_sum, out.z2_sum)]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == expected
