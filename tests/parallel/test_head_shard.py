"""The head's loss and log-probabilities over a sharded vocabulary, against the whole head's and
plain float64.

Ranks are threads that meet at a barrier, so that a case takes milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bc2.errors import DataError
from bc2.model.head_loss import IGNORE, head_loss
from bc2.model.log_probs import TokenLogProbs, token_log_probs

#: hidden, weight, labels
Given = tuple[Tensor, Tensor, Tensor]
#: loss, Σ CE, Σ z, Σ z², gradient of hidden, gradient of weight
Found = tuple[list[float], Tensor, Tensor]
Reduce = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")


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

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        reduce = {"sum": torch.add, "max": self.maximum, "min": torch.minimum}
        return self.meeting.all(self.rank, x, reduce[op])


def sharded(
    given: Given, ranks: int, maximum: Reduce = torch.maximum, **options: Any
) -> list[Found]:
    """What each rank gets: its own rows' gradient last."""
    return on_ranks(one, given, ranks, maximum, **options)


def on_ranks(
    function: Callable[..., T],
    given: Given,
    ranks: int,
    maximum: Reduce = torch.maximum,
    **options: Any,
) -> list[T]:
    """What a function of hidden, weight, labels and a shard says on each rank."""
    hidden, weight, labels = given
    rows = len(weight) // ranks
    meeting = Meeting(ranks)

    def run(rank: int) -> T:
        try:
            mine = weight[rank * rows : (rank + 1) * rows]
            shard = Shard(meeting, rank, rows, len(weight), maximum)
            return function((hidden, mine, labels), shard=shard, **options)
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


#: Log-probabilities and what comes with them, gradient of hidden, gradient of weight
Said = tuple[TokenLogProbs, Tensor, Tensor]


def say(given: Given, *, upstream: Tensor, **options: Any) -> Said:
    """Upstream: gradients of log-probabilities and of entropies, [2, T]."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in given[:2])
    out = token_log_probs(hidden, weight, given[2], entropy=True, **options)
    assert out.entropy is not None
    loss = (upstream[0] * out.log_probs + upstream[1] * out.entropy).sum()
    return out, *torch.autograd.grad(loss, (hidden, weight))


def say_plainly(
    given: Given, *, upstream: Tensor, norm_head: bool, temperature: float, top_k: int
) -> Said:
    """All logits at once, in float64."""
    hidden, weight = (x.detach().double().requires_grad_() for x in given[:2])
    left_out = given[2] == IGNORE
    rows = F.normalize(weight, dim=-1) if norm_head else weight
    every = (hidden @ rows.t() / temperature).log_softmax(-1)
    log_probs = every.gather(1, given[2].clamp(min=0)[:, None])[:, 0].masked_fill(left_out, 0.0)
    entropy = -(every.exp() * every).sum(-1).masked_fill(left_out, 0.0)
    values, ids = every.detach().sort(dim=-1, descending=True, stable=True)
    out = TokenLogProbs(
        log_probs,
        ids[:, 0] == given[2],
        entropy,
        values[:, :top_k].masked_fill(left_out[:, None], 0.0),
        ids[:, :top_k].masked_fill(left_out[:, None], -1),
    )
    loss = (upstream[0] * log_probs + upstream[1] * entropy).sum()
    return out, *torch.autograd.grad(loss, (hidden, weight))


def check_said(found: list[Said], expected: Said, *, values: float, grads: float) -> None:
    for out, grad_hidden, _ in found:
        assert all(
            (a is None and b is None) or torch.equal(a, b)
            for a, b in zip(out, found[0][0], strict=True)
        )
        assert torch.equal(grad_hidden, found[0][1])
    ours, theirs = found[0][0], expected[0]
    for a, b in ((ours.log_probs, theirs.log_probs), (ours.entropy, theirs.entropy)):
        torch.testing.assert_close(a.double(), b.double(), rtol=values, atol=values)
    if ours.top_log_probs is not None:
        torch.testing.assert_close(
            ours.top_log_probs.double(), theirs.top_log_probs.double(), rtol=values, atol=values
        )
    off(found[0][1], expected[1], grads)
    off(torch.cat([got[2] for got in found]), expected[2], grads)


@settings(max_examples=120, deadline=None)
@given(
    ranks=st.sampled_from([2, 4]),
    rows=st.sampled_from([1, 3, 50, 300, 600]),
    tokens=st.integers(0, 20),
    chunk=st.sampled_from([None, 1, 3, 8]),
    norm_head=st.booleans(),
    temperature=st.sampled_from([1.0, 0.7]),
    top_k=st.sampled_from([0, 1, 2, 7, "all"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    zero=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_shards_say_what_the_whole_head_says(
    ranks: int, rows: int, tokens: int, chunk: int | None, norm_head: bool, temperature: float,
    top_k: int | str, dtype: torch.dtype, masked: float, zero: float, seed: int,
) -> None:  # fmt: skip
    given_ = inputs(tokens, ranks * rows, 6, dtype, seed=seed, masked=masked)
    g = torch.Generator().manual_seed(seed)
    upstream = torch.randn(2, tokens, generator=g).to(dtype)
    upstream[:, torch.rand(tokens, generator=g) < zero] = 0.0
    k = ranks * rows if top_k == "all" else min(int(top_k), ranks * rows)
    options = {
        "upstream": upstream, "norm_head": norm_head, "temperature": temperature, "top_k": k,
    }  # fmt: skip
    found = on_ranks(say, given_, ranks, chunk_tokens=chunk, **options)
    values, grads = EXACT[dtype]
    expected = say_plainly(given_, **options)
    check_said(found, expected, values=values, grads=grads)
    assert torch.equal(found[0][0].greedy, expected[0].greedy)
    whole = say(given_, chunk_tokens=chunk, **options)
    check_said(found, whole, values=values, grads=grads)
    if k and dtype == torch.float64:
        assert found[0][0].top_ids is not None
        assert torch.equal(found[0][0].top_ids, expected[0].top_ids)


@pytest.mark.parametrize("mixed", [False, True])
def test_bf16_shards_say_what_the_whole_head_says(mixed: bool) -> None:
    hidden, weight, labels = inputs(200, 1200, 32, torch.bfloat16, seed=1)
    given_ = hidden, weight.float() if mixed else weight, labels
    upstream = torch.randn(2, 200, generator=torch.Generator().manual_seed(1))
    options = {"upstream": upstream, "norm_head": True, "temperature": 1.0, "top_k": 3}
    found = on_ranks(say, given_, 4, **options)
    assert found[0][2].dtype == (torch.float32 if mixed else torch.bfloat16)
    check_said(found, say(given_, **options), values=1e-6, grads=1e-2)
    check_said(found, say_plainly(given_, **options), values=3e-2, grads=1e-2)


def test_of_equal_logits_the_lowest_id_of_all_ranks_is_the_likeliest() -> None:
    weight = torch.tensor([0.0, 2.0, 2.0, 1.0, 2.0, 0.0, 2.0, 1.0])[:, None]
    given_ = torch.ones(8, 1), weight, torch.arange(8)
    upstream = torch.zeros(2, 8)
    options = {"upstream": upstream, "norm_head": False, "top_k": 5}
    for out, *_ in on_ranks(say, given_, 4, **options):
        assert out.greedy.tolist() == [False, True, *[False] * 6]
        assert out.top_ids.tolist() == [[1, 2, 4, 6, 3]] * 8


def gradients(given: Given, *, of: str, wanted: tuple[bool, bool], shard: Shard) -> list[Any]:
    """Of hidden and weight, None where it is not wanted."""
    both = [x.detach().clone().requires_grad_(on) for x, on in zip(given[:2], wanted, strict=True)]
    if of == "loss":
        loss = head_loss(*both, given[2], z_weight=0.1, shard=shard).loss_sum
    else:
        out = token_log_probs(*both, given[2], norm_head=True, entropy=True, shard=shard)
        assert out.entropy is not None
        loss = (out.log_probs + 0.3 * out.entropy).sum()
    loss.backward()
    return [x.grad for x in both]


@pytest.mark.parametrize("of", ["loss", "log-probabilities"])
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["head", "hidden"])
def test_what_is_frozen_changes_no_other_gradient(of: str, wanted: tuple[bool, bool]) -> None:
    """Each rank has part of the gradient of hidden: it is summed where the head has none too."""
    given_ = inputs(20, 40, 6, torch.float32, seed=5)
    every = on_ranks(gradients, given_, 4, of=of, wanted=(True, True))
    found = on_ranks(gradients, given_, 4, of=of, wanted=wanted)
    at = wanted.index(True)
    for mine, all_of_mine in zip(found, every, strict=True):
        assert mine[1 - at] is None
        assert torch.equal(mine[at], all_of_mine[at])
    if at == 0:
        assert all(torch.equal(mine[0], found[0][0]) for mine in found)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("maximum", MAXIMA.values(), ids=MAXIMA)
@pytest.mark.parametrize("where", ["hidden", "first rows", "last rows", "one row"])
def test_log_probs_are_never_silently_finite(
    where: str, maximum: Reduce, dtype: torch.dtype
) -> None:
    hidden, weight, labels = inputs(7, 40, 6, dtype, seed=2, masked=0.0)
    rows = {"first rows": slice(0, 10), "last rows": slice(30, 40), "one row": 25}
    if where == "hidden":
        hidden[3] = torch.nan
    else:
        weight[rows[where]] = torch.nan
    bad = torch.arange(7) == 3 if where == "hidden" else torch.ones(7, dtype=torch.bool)
    options = {"upstream": torch.ones(2, 7), "norm_head": False, "top_k": 2}
    for out, grad_hidden, _ in on_ranks(say, (hidden, weight, labels), 4, maximum, **options):
        assert torch.equal(out.log_probs.isnan(), bad)
        assert torch.equal(out.entropy.isnan(), bad)
        assert torch.equal(out.top_log_probs.isnan().all(-1), bad)
        assert not out.greedy[bad].any()
        assert grad_hidden[bad].isnan().all()
