"""Log-probabilities of tokens against all logits at once in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bc2.errors import DataError
from bc2.model import head_sizes, head_weight
from bc2.model import log_probs as module
from bc2.model.head_loss import IGNORE, head_loss
from bc2.model.log_probs import largest, token_log_probs
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer


def plain(hidden, weight, labels, *, norm_head=True, temperature=1.0):
    """Log-probabilities [T, V], and those of the labels, from all logits at once.

    The dtype is that of the inputs.
    """
    rows = F.normalize(weight, dim=-1) if norm_head else weight
    logits = hidden @ rows.t() / temperature
    every = logits.log_softmax(-1)
    known = labels != IGNORE
    of_label = every.gather(1, labels.masked_fill(~known, 0)[:, None])[:, 0]
    entropy = -(every.exp() * every).sum(-1)
    return every, of_label.masked_fill(~known, 0.0), entropy.masked_fill(~known, 0.0)


def wide(*tensors):
    return [x.detach().double().requires_grad_() for x in tensors]


def inputs(tokens, size, vocab, dtype=torch.float64, seed=0, masked=0.3, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=g).to(dtype).requires_grad_()
    weight = (scale * torch.randn(vocab, size, generator=g)).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=g)
    labels[torch.rand(tokens, generator=g) < masked] = IGNORE
    return hidden, weight, labels


def upstream(tokens, dtype=torch.float64, seed=0, zero=0.0):
    """An upstream gradient for each token's log-probability, and one for its entropy."""
    g = torch.Generator().manual_seed(seed + 100)
    found = torch.randn(2, tokens, generator=g).to(dtype)
    found[:, torch.rand(tokens, generator=g) < zero] = 0.0
    return found


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@settings(max_examples=120, deadline=None)
@given(
    tokens=st.integers(0, 20),
    vocab=st.sampled_from([1, 2, 7, 300, 600, 1111]),
    chunk=st.sampled_from([None, 1, 3, 8, 100]),
    norm_head=st.booleans(),
    temperature=st.sampled_from([1.0, 0.7, 3.0]),
    k=st.sampled_from([0, 1, 2, 50, "all"]),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    zero=st.sampled_from([0.0, 0.5, 1.0]),
    boundary=st.booleans(),
    seed=st.integers(0, 9),
)
def test_float64_agrees_with_all_logits_at_once(
    tokens, vocab, chunk, norm_head, temperature, k, masked, zero, boundary, seed
):
    hidden, weight, labels = inputs(tokens, 6, vocab, seed=seed, masked=masked)
    if boundary:
        labels = torch.where(labels == IGNORE, IGNORE, (labels % 2) * (vocab - 1))
    g, e = upstream(tokens, seed=seed, zero=zero)
    top_k = vocab if k == "all" else min(k, vocab)
    options = {"norm_head": norm_head, "temperature": temperature}
    out = token_log_probs(
        hidden, weight, labels, entropy=True, top_k=top_k, chunk_tokens=chunk, **options
    )
    reference = wide(hidden, weight)
    every, log_probs, entropy = plain(*reference, labels, **options)
    torch.testing.assert_close(out.log_probs, log_probs, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(out.entropy, entropy, rtol=1e-11, atol=1e-12)
    found = torch.autograd.grad((g * out.log_probs + e * out.entropy).sum(), (hidden, weight))
    expected = torch.autograd.grad((g * log_probs + e * entropy).sum(), reference)
    torch.testing.assert_close(found, tuple(expected), rtol=1e-9, atol=1e-12)
    known = labels != IGNORE
    assert torch.equal(out.greedy, known & (every.argmax(-1) == labels))
    if top_k:
        values, ids = every.sort(dim=-1, descending=True, stable=True)
        torch.testing.assert_close(out.top_log_probs[known], values[known, :top_k])
        assert torch.equal(out.top_ids[known], ids[known, :top_k])
        assert (out.top_ids[~known] == -1).all()
        assert (out.top_log_probs[~known] == 0).all()
    else:
        assert out.top_log_probs is None
        assert out.top_ids is None


@pytest.mark.parametrize("norm_head", [True, False])
@pytest.mark.parametrize(
    ("tokens", "vocab"), [(300, 8192), pytest.param(384, 125_696, marks=pytest.mark.slow)]
)
def test_fp32_agrees_with_float64_to_1e_6(tokens, vocab, norm_head):
    # Rows of unit length, or of a length that rows of a plain head have after training.
    hidden, weight, labels = inputs(tokens, 384, vocab, torch.float32, scale=0.05)
    g, e = upstream(tokens, torch.float32)
    out = token_log_probs(hidden, weight, labels, norm_head=norm_head, entropy=True, top_k=5)
    reference = wide(hidden, weight)
    every, log_probs, entropy = plain(*reference, labels, norm_head=norm_head)
    assert out.log_probs.dtype == out.entropy.dtype == torch.float32
    torch.testing.assert_close(out.log_probs.double(), log_probs, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.entropy.double(), entropy, rtol=1e-6, atol=0)
    known = labels != IGNORE
    values = every[known].topk(5).values
    torch.testing.assert_close(out.top_log_probs[known].double(), values, rtol=1e-6, atol=0)
    of_terms = [(g, None), (None, e), (g, e)]
    for a, b in of_terms:
        terms = [x * y for x, y in ((a, out.log_probs), (b, out.entropy)) if x is not None]
        wider = [x.double() * y for x, y in ((a, log_probs), (b, entropy)) if x is not None]
        found = torch.autograd.grad(sum(terms).sum(), (hidden, weight), retain_graph=True)
        expected = torch.autograd.grad(sum(wider).sum(), reference, retain_graph=True)
        assert relative(found[0], expected[0]) < 1e-6
        assert relative(found[1], expected[1]) < 1e-6


def test_losses_of_preference_and_policy_agree_with_float64():
    """DPO's loss on summed log-probabilities, and PPO's loss on clipped ratios with an entropy."""
    hidden, weight, labels = inputs(60, 16, 700, torch.float32, masked=0.2)
    old = plain(*wide(hidden, weight), labels)[1].detach() + 0.3 * upstream(60)[0]
    advantage = upstream(60)[1]

    def loss(log_probs, entropy):
        log_probs, entropy = log_probs.double(), entropy.double()
        chosen, rejected = log_probs[:30].sum(), log_probs[30:].sum()
        ratio = (log_probs - old).exp()
        clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        return -F.logsigmoid(0.1 * (chosen - rejected)) - clipped.mean() - 0.01 * entropy.mean()

    out = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True)
    reference = wide(hidden, weight)
    expected = loss(*plain(*reference, labels)[1:])
    assert loss(out.log_probs, out.entropy).item() == pytest.approx(expected.item(), rel=1e-6)
    found = torch.autograd.grad(loss(out.log_probs, out.entropy), (hidden, weight))
    for ours, theirs in zip(found, torch.autograd.grad(expected, reference), strict=True):
        assert relative(ours, theirs) < 1e-6


def test_a_sum_over_labels_is_the_fused_loss():
    hidden, weight, labels = inputs(300, 16, 700, torch.float32)
    out = token_log_probs(hidden, weight, labels, norm_head=True)
    fused = head_loss(hidden, weight, labels, z_weight=0.0)
    assert -out.log_probs.sum().item() == pytest.approx(fused.ce_sum.item(), rel=1e-6)
    found = torch.autograd.grad(-out.log_probs.sum(), (hidden, weight))
    for a, b in zip(found, torch.autograd.grad(fused.loss_sum, (hidden, weight)), strict=True):
        assert relative(a, b.double()) < 1e-6


@pytest.mark.parametrize("mixed", [False, True])
def test_bf16_is_as_close_as_the_plain_version_in_bf16(mixed):
    """Logits are rounded to 8 bits, so the error of a log-probability is 2^-8 of the largest."""
    hidden, weight, labels = inputs(300, 64, 8192, torch.bfloat16)
    if mixed:
        weight = weight.detach().float().requires_grad_()
    g, e = upstream(300, torch.float32)
    reference = wide(hidden, weight)
    _, log_probs, entropy = plain(*reference, labels)
    exact = torch.autograd.grad((g * log_probs + e * entropy).sum(), reference)

    out = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True, chunk_tokens=64)
    found = torch.autograd.grad((g * out.log_probs + e * out.entropy).sum(), (hidden, weight))
    assert out.log_probs.dtype == out.entropy.dtype == torch.float32
    assert found[1].dtype == weight.dtype

    unit = F.normalize(weight.float(), dim=-1).bfloat16()
    every = F.linear(hidden, unit).float().log_softmax(-1)
    known = labels != IGNORE
    value = every.gather(1, labels.clamp(min=0)[:, None])[:, 0].masked_fill(~known, 0.0)
    spread = -(every.exp() * every).sum(-1).masked_fill(~known, 0.0)
    rounded = torch.autograd.grad((g * value + e * spread).sum(), (hidden, weight))

    largest_logit = (reference[0] @ F.normalize(reference[1], dim=-1).t()).abs().max()
    assert (out.log_probs - log_probs).abs().max() < 2**-8 * largest_logit
    assert (out.entropy - entropy).abs().max() < 2**-8 * largest_logit
    for ours, theirs, right in zip(found, rounded, exact, strict=True):
        assert relative(ours, right) < 1.1 * relative(theirs, right)
        assert relative(ours, right) < 1e-2


def test_bf16_accumulates_the_weight_gradient_in_fp32():
    """512 chunks of one label each: bf16 sums would stop growing at 256."""
    hidden = torch.ones(512, 4, dtype=torch.bfloat16)
    weight = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(512, dtype=torch.int64)
    out = token_log_probs(hidden, weight, labels, norm_head=False, chunk_tokens=1)
    out.log_probs.sum().backward()
    expected = torch.tensor([2 / 3, -1 / 3, -1 / 3], dtype=torch.float64) * 512
    assert relative(weight.grad, expected[:, None].expand(3, 4)) < 2**-8


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_compiled_passes_over_the_weight_agree_with_the_plain_ones(dtype, limit):
    # More rows than are handled at a time, and one row of zeros.
    hidden, weight, labels = inputs(40, 16, 5000, dtype)
    with torch.no_grad():
        weight[7] = 0.0
    weight = weight.detach().float().requires_grad_()
    g, e = upstream(40, torch.float32)
    results = []
    for compiled in (False, True):
        out = token_log_probs(
            hidden, weight, labels, norm_head=True, entropy=True, compiled=compiled
        )
        loss = (g * out.log_probs + e * out.entropy).sum()
        results.append((out.log_probs, *torch.autograd.grad(loss, (hidden, weight))))
    for ours, theirs in zip(*results, strict=True):
        assert relative(ours, theirs.double()) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunk_size_changes_rounding_alone(dtype):
    hidden, weight, labels = inputs(100, 16, 700, dtype)
    g, e = upstream(100, torch.float32)
    results = []
    for chunk in (None, 1, 33, 100, 1000):
        out = token_log_probs(
            hidden, weight, labels, norm_head=True, entropy=True, chunk_tokens=chunk
        )
        loss = (g * out.log_probs + e * out.entropy).sum()
        grads = torch.autograd.grad(loss, (hidden, weight))
        results.append([x.double() for x in (out.log_probs, out.entropy, *grads)])
    # The product of each chunk is rounded to the dtype, so chunks change bf16 results slightly.
    limit = 1e-6 if dtype == torch.float32 else 2**-8
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert relative(a, b) < limit


def test_blocks_of_rows_do_not_change_the_results(monkeypatch):
    hidden, weight, labels = inputs(50, 16, 700)
    options = {"norm_head": True, "entropy": True, "top_k": 4}
    whole = token_log_probs(hidden, weight, labels, **options)
    expected = torch.autograd.grad((whole.log_probs * whole.entropy).sum(), (hidden, weight))
    monkeypatch.setitem(head_sizes.BLOCK_BYTES, "cpu", 700 * 8 * 3)
    monkeypatch.setitem(head_sizes.WEIGHT_ROWS, "cpu", 64)
    blocks = token_log_probs(hidden, weight, labels, **options)
    found = torch.autograd.grad((blocks.log_probs * blocks.entropy).sum(), (hidden, weight))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(blocks.top_ids, whole.top_ids)


@pytest.mark.parametrize("zero_copy", [True, False])
def test_the_backward_pass_can_be_repeated(zero_copy):
    hidden, weight, labels = inputs(9, 4, 11)
    temperature = 1.0 if zero_copy else 2.0
    out = token_log_probs(hidden, weight, labels, norm_head=True, temperature=temperature)
    first = torch.autograd.grad(out.log_probs.sum(), (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(out.log_probs.sum(), (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.log_probs.sum(), (hidden, weight))


def test_a_weight_changed_before_the_backward_pass_is_an_error():
    """The backward pass would compute logits that are not those of the forward pass."""
    hidden, weight, labels = inputs(9, 4, 11)
    out = token_log_probs(hidden, weight, labels, norm_head=True)
    with torch.no_grad():
        weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.log_probs.sum().backward()


def test_gradients_of_gradients_are_refused():
    hidden, weight, labels = inputs(9, 4, 11)
    out = token_log_probs(hidden, weight, labels, norm_head=True)
    grad = torch.autograd.grad(out.log_probs.square().sum(), hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("tokens", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_labelled_is_zero_and_not_nan(tokens, dtype):
    hidden, weight, _ = inputs(tokens, 4, 11, dtype)
    labels = torch.full((tokens,), IGNORE)
    out = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True, top_k=2)
    (out.log_probs + out.entropy).sum().backward()
    assert torch.equal(out.log_probs, torch.zeros(tokens))
    assert torch.equal(out.entropy, torch.zeros(tokens))
    assert not out.greedy.any()
    assert torch.equal(out.top_ids, torch.full((tokens, 2), -1))
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_tokens_left_out_take_no_part_whatever_they_are(bad):
    hidden, weight, labels = inputs(300, 4, 11, masked=0.5)
    masked = labels == IGNORE
    with torch.no_grad():
        hidden[masked] = bad
    out = token_log_probs(hidden, weight, labels, norm_head=True)
    assert (out.log_probs[masked] == 0).all()
    found = torch.autograd.grad(out.log_probs.sum(), (hidden, weight))
    kept = hidden.detach()[~masked].requires_grad_()
    alone = token_log_probs(kept, weight, labels[~masked], norm_head=True)
    expected = torch.autograd.grad(alone.log_probs.sum(), (kept, weight))
    torch.testing.assert_close(out.log_probs[~masked], alone.log_probs, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0][~masked], expected[0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-15)
    assert (found[0][masked] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_are_passed_on(bad, dtype):
    hidden, weight, labels = inputs(9, 4, 1101, dtype, masked=0.0)
    with torch.no_grad():
        hidden[3, 2] = bad
        labels[3] = 0
    out = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True, top_k=3)
    others = torch.arange(9) != 3
    for value in (out.log_probs, out.entropy, out.top_log_probs):
        assert value[3].isnan().all()
        assert value[others].isfinite().all()
    assert not out.greedy[3]
    assert ((out.top_ids >= 0) & (out.top_ids < 1101)).all()
    (out.log_probs + out.entropy).sum().backward()
    assert hidden.grad[3].isnan().all()
    assert hidden.grad[others].isfinite().all()
    assert weight.grad.isnan().any()


def test_tokens_without_an_upstream_gradient_cost_nothing(monkeypatch):
    """Such as tokens that PPO's clipping excludes, or tokens of weight 0."""
    hidden, weight, labels = inputs(1024, 4, 11, masked=0.0)
    weights = torch.zeros(1024, dtype=torch.float64)
    weights[::8] = torch.linspace(0.1, 2.0, 128, dtype=torch.float64)
    out = token_log_probs(hidden, weight, labels, norm_head=True)
    computed = []
    real = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda a, b, **kw: computed.append(tuple(a.shape)) or real(a, b, **kw)
    )
    found = torch.autograd.grad(-(weights * out.log_probs).sum(), (hidden, weight))
    assert computed == [(128, 4), (128, 11), (11, 128)]
    reference = wide(hidden, weight)
    expected = torch.autograd.grad(-(weights * plain(*reference, labels)[1]).sum(), reference)
    torch.testing.assert_close(found, tuple(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("which", ["hidden", "weight", "neither"])
def test_only_the_wanted_gradients_are_computed(monkeypatch, which):
    hidden, weight, labels = inputs(9, 4, 11)
    reference = dict(zip(("hidden", "weight"), wide(hidden, weight), strict=True))
    plain(*reference.values(), labels)[1].sum().backward()
    products, gradients = [], []
    real, made = torch.mm, head_weight.WeightGradient

    def counted(a, b, **kwargs):
        products.append((tuple(a.shape), tuple(b.shape)))
        return real(a, b, **kwargs)

    monkeypatch.setattr(torch, "mm", counted)
    monkeypatch.setattr(module, "WeightGradient", lambda *a, **k: gradients.append(a) or made(*a))
    wanted = {"hidden": hidden, "weight": weight}
    for name, tensor in wanted.items():
        tensor.requires_grad_(name == which)
    out = token_log_probs(hidden, weight, labels, norm_head=True)
    assert len(products) == 1
    if which == "neither":
        assert not out.log_probs.requires_grad
        return
    out.log_probs.sum().backward()
    torch.testing.assert_close(wanted[which].grad, reference[which].grad, rtol=1e-9, atol=1e-12)
    assert len(products) == 3
    assert len(gradients) == (which == "weight")


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_it():
    """The weight is far larger than the logits of a chunk: only its unit rows have its size."""
    hidden, weight, labels = inputs(8, 64, 4096, torch.float32)
    made = {}
    for frozen in (True, False):
        weight.requires_grad_(not frozen)
        with Watch() as watch:
            out = token_log_probs(hidden, weight, labels, norm_head=False)
            out.log_probs.sum().backward()
        made[frozen] = max(watch.sizes)
    assert made[True] <= 8 * 4096 * 8
    assert made[False] >= 64 * 4096 * 4


def test_no_grad_keeps_nothing(monkeypatch):
    hidden, weight, labels = inputs(9, 4, 11)
    with torch.no_grad():
        out = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True)
    assert not out.log_probs.requires_grad
    assert not out.entropy.requires_grad
    with torch.inference_mode():
        again = token_log_probs(hidden, weight, labels, norm_head=True)
    assert torch.equal(again.log_probs, out.log_probs)
    expected = plain(hidden, weight, labels)[1]
    torch.testing.assert_close(out.log_probs, expected.detach(), rtol=1e-12, atol=0)


def test_only_log_probs_and_entropy_carry_gradients():
    hidden, weight, labels = inputs(9, 4, 11)
    out = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True, top_k=2)
    assert out.log_probs.requires_grad
    assert out.entropy.requires_grad
    assert not out.greedy.requires_grad
    assert not out.top_log_probs.requires_grad


def test_a_row_of_zeros_gives_no_nan():
    hidden, weight, labels = inputs(9, 4, 11)
    with torch.no_grad():
        weight[3] = 0.0
    out = token_log_probs(hidden, weight, labels, norm_head=True)
    found = torch.autograd.grad(out.log_probs.sum(), (hidden, weight))
    reference = wide(hidden, weight)
    expected = torch.autograd.grad(plain(*reference, labels)[1].sum(), reference)
    torch.testing.assert_close(found, tuple(expected), rtol=1e-9, atol=1e-12)


def test_large_logits_do_not_overflow():
    hidden, weight, labels = inputs(9, 4, 11, torch.float32)
    hidden = (hidden.detach() * 1e4).requires_grad_()
    out = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True)
    reference = wide(hidden, weight)
    _, log_probs, entropy = plain(*reference, labels)
    torch.testing.assert_close(out.log_probs.double(), log_probs, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(out.entropy.double(), entropy, rtol=1e-3, atol=1e-6)
    out.log_probs.sum().backward()
    log_probs.sum().backward()
    assert relative(hidden.grad, reference[0].grad) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_entropy_near_0_is_not_negative_and_has_a_gradient(dtype):
    # Of probabilities that are 0 in fp32 too: 0 log 0 is 0.
    hidden = torch.tensor([[200.0], [30.0], [0.0], [3e38]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-0.125]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 0])
    out = token_log_probs(hidden, weight, labels, norm_head=False, entropy=True)
    reference = wide(hidden, weight)
    expected = plain(*reference, labels, norm_head=False)[2]
    assert (out.entropy >= 0).all()
    torch.testing.assert_close(out.entropy.double(), expected, rtol=1e-6, atol=1e-12)
    found = torch.autograd.grad(out.entropy.sum(), (hidden, weight))
    exact = torch.autograd.grad(expected.sum(), reference)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=1e-9)


def test_of_equal_logits_the_lowest_id_is_the_likeliest():
    weight = torch.tensor([[1.0], [2.0], [2.0], [0.0], [2.0], [1.0]])
    hidden = torch.ones(6, 1)
    labels = torch.arange(6)
    out = token_log_probs(hidden, weight, labels, norm_head=False, top_k=4)
    assert out.greedy.tolist() == [False, True, False, False, False, False]
    assert out.top_ids.tolist() == [[1, 2, 4, 0]] * 6


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 700),
    count=st.integers(1, 700),
    values=st.sampled_from([1, 3, 50, 10_000]),
    seed=st.integers(0, 9),
)
def test_largest_is_the_beginning_of_a_stable_sort(rows, columns, count, values, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(values, (rows, columns), generator=g).float()
    count = min(count, columns)
    expected = x.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(largest(x, count), expected)


@pytest.mark.parametrize("wrong", [11, 130_000, -1, -101])
def test_a_label_outside_the_vocabulary_is_an_error(wrong):
    hidden, weight, labels = inputs(9, 4, 11)
    labels[2], labels[6] = IGNORE, wrong
    with pytest.raises(DataError, match=f"label {wrong} is outside the vocabulary of 11") as info:
        token_log_probs(hidden, weight, labels, norm_head=True)
    assert info.value.where == "token 6 of the batch"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.ones(3, 5)}, "does not fit weight"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "labels for 3 tokens"),
        ({"weight": torch.ones(7, 4).bfloat16()}, "float32 but weight is torch.bfloat16"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 8}, "top_k is 8; the vocabulary has 7"),
        ({"top_k": -1}, "top_k is -1"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
    ],
)
def test_refuses_what_does_not_belong_together(change, message):
    given_ = {
        "hidden": torch.ones(3, 4),
        "weight": torch.ones(7, 4),
        "labels": torch.zeros(3, dtype=torch.int64),
        "norm_head": True,
        "top_k": 7,
    }
    token_log_probs(**given_)
    with pytest.raises(ValueError, match=message):
        token_log_probs(**{**given_, **change})


class Watch(TorchDispatchMode):
    """Records the bytes of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # A view counts with the size of its base.
        if torch.Tag.inplace_view not in func.tags and not func.is_view:
            made = out if isinstance(out, tuple) else (out,)
            self.sizes += [
                x.untyped_storage().nbytes() for x in made if isinstance(x, torch.Tensor)
            ]
        return out


def test_the_logits_never_exist():
    """The largest tensor that is made has the size of a chunk, whatever the number of tokens."""
    hidden, weight, labels = inputs(512, 8, 4096, torch.float32)
    with Watch() as watch:
        out = token_log_probs(hidden, weight, labels, norm_head=True, entropy=True, chunk_tokens=16)
        (out.log_probs + out.entropy).sum().backward()
    logits = 512 * 4096 * 4
    assert max(watch.sizes) <= logits // 16
    assert max(watch.sizes) >= 16 * 4096 * 4


@pytest.mark.parametrize("norm_head", [True, False])
def test_a_models_head_gives_the_same_log_probs(norm_head):
    config = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2,
        context_length=16, norm_head=norm_head,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.arange(16)
    hidden = model(tokens, torch.tensor([0, 16], dtype=torch.int32), 16)
    labels = torch.arange(16) + 1
    out = model.lm_head.log_probs(hidden, labels, temperature=0.5, entropy=True, top_k=3)
    every = (model.logits(hidden) / 0.5).log_softmax(-1)
    expected = every.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(out.log_probs, expected)
    torch.testing.assert_close(out.entropy, -(every.exp() * every).sum(-1))
    torch.testing.assert_close(out.top_log_probs, every.topk(3).values)
    found = torch.autograd.grad(out.log_probs.sum(), model.parameters(), retain_graph=True)
    right = torch.autograd.grad(expected.sum(), model.parameters())
    torch.testing.assert_close(found, right)


def test_autocast_around_it_changes_nothing():
    hidden, weight = torch.randn(9, 8), torch.randn(33, 8)
    labels = torch.arange(9)

    def gradients():
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        token_log_probs(x, w, labels, norm_head=True).log_probs.sum().backward()
        return x.grad, w.grad

    plain = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(gradients(), plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_labels_are_int64(dtype):
    with pytest.raises(ValueError, match="use int64"):
        token_log_probs(
            torch.randn(2, 8), torch.randn(33, 8), torch.zeros(2, dtype=dtype), norm_head=True
        )
