"""The fused head and loss against a plain implementation in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from bc2.errors import DataError
from bc2.model import head_loss as head_loss_module
from bc2.model import head_sizes, head_weight
from bc2.model.head_loss import IGNORE, head_loss
from bc2.model.head_sizes import CHUNK_LOGITS, chunk_size
from bc2.model.token_losses import compiled_token_losses_, token_losses_


def naive(hidden, weight, labels, z_weight, norm_head=True):
    """All logits at once, in float64; returns the four sums and the two gradients."""
    hidden = hidden.detach().double().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    rows = F.normalize(weight, dim=-1) if norm_head else weight
    logits = (hidden @ rows.t())[labels != IGNORE]
    ce = F.cross_entropy(logits, labels[labels != IGNORE], reduction="none")
    z = logits.max(dim=-1).values
    loss = (ce + z_weight * z.square()).sum()
    grads = torch.autograd.grad(loss, (hidden, weight))
    return [x.item() for x in (loss, ce.sum(), z.sum(), z.square().sum())], grads


def inputs(tokens, size, vocab, dtype=torch.float64, seed=0, masked=0.3):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(vocab, size, generator=g).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=g)
    labels[torch.rand(tokens, generator=g) < masked] = IGNORE
    return hidden, weight, labels


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 20),
    vocab=st.sampled_from([1, 2, 7, 300, 600, 1111]),
    chunk=st.sampled_from([None, 1, 3, 8]),
    z_weight=st.sampled_from([0.0, 2e-4, 0.1]),
    norm_head=st.booleans(),
    masked=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.integers(0, 9),
)
def test_float64_agrees_with_the_plain_loss(
    tokens, vocab, chunk, z_weight, norm_head, masked, seed
):
    hidden, weight, labels = inputs(tokens, 6, vocab, seed=seed, masked=masked)
    sums, grads = naive(hidden, weight, labels, z_weight, norm_head)
    out = head_loss(
        hidden, weight, labels, z_weight=z_weight, norm_head=norm_head, chunk_tokens=chunk
    )
    found = torch.autograd.grad(out.loss_sum, (hidden, weight))
    values = [x.item() for x in (out.loss_sum, out.ce_sum, out.z_sum, out.z2_sum)]
    assert values == pytest.approx(sums, rel=1e-12, abs=1e-12)
    assert out.labelled == int((labels != IGNORE).sum())
    torch.testing.assert_close(found, grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "limit", "norm_head"),
    [(torch.float32, 1e-6, True), (torch.bfloat16, 6e-3, True), (torch.float32, 1e-6, False)],
)
def test_compiled_passes_over_the_weight_agree_with_the_plain_loss(dtype, limit, norm_head):
    # More rows than are handled at a time, and one row of zeros.
    hidden, weight, labels = inputs(40, 16, 5000, dtype)
    with torch.no_grad():
        weight[7] = 0.0
    wide = weight.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    options = {"z_weight": 0.01, "norm_head": norm_head, "chunk_tokens": 16}
    out = head_loss(hidden, wide, labels, compiled=True, **options)
    found = torch.autograd.grad(out.loss_sum, (hidden, wide))
    plain = head_loss(hidden, wide, labels, **options)
    expected = torch.autograd.grad(plain.loss_sum, (hidden, wide))
    assert out.loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=limit)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative(ours, theirs.double()) < limit
    right = naive(hidden, wide, labels, 0.01, norm_head)[1]
    # The reference has no row of zeros, because it would divide by zero.
    errors = []
    for mine in (found[1].clone(), expected[1].clone()):
        mine[7] = right[1][7]
        errors.append(relative(mine, right[1]))
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("norm_head", [True, False])
def test_gradients_are_the_differences_of_the_loss(norm_head):
    hidden, weight, labels = inputs(5, 4, 9)

    def run(flat):
        parts = torch.from_numpy(flat).split([hidden.numel(), weight.numel()])
        moved = [
            p.view_as(x).requires_grad_() for p, x in zip(parts, (hidden, weight), strict=True)
        ]
        options = {"z_weight": 0.05, "norm_head": norm_head, "chunk_tokens": 2}
        return head_loss(*moved, labels, **options).loss_sum, moved

    def gradient(flat):
        loss, moved = run(flat)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, moved)]).numpy()

    at = torch.cat([hidden.flatten(), weight.flatten()]).detach().numpy()
    error = check_grad(lambda flat: run(flat)[0].item(), gradient, at)
    assert error < 1e-5 * np.linalg.norm(gradient(at))


def test_a_second_backward_is_refused():
    hidden, weight, labels = inputs(5, 4, 9)
    out = head_loss(hidden, weight, labels, z_weight=0.05)
    out.loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once"):
        out.loss_sum.backward()


def test_an_fp32_weight_beside_bf16_hidden_states_has_an_unrounded_gradient():
    hidden, weight, labels = inputs(300, 32, 1500, torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    out = head_loss(half, weight, labels, z_weight=2e-4)
    out.loss_sum.backward()
    # Rows are rounded after they are scaled to unit length, so the reference gets rounded rows.
    unit = F.normalize(weight.detach(), dim=-1).bfloat16()
    sums, _ = naive(half, unit, labels, 2e-4, norm_head=False)
    assert out.loss_sum.item() == pytest.approx(sums[0], rel=1e-3)
    exact = naive(hidden, weight, labels, 2e-4)[1]
    assert weight.grad.dtype == torch.float32
    assert relative(weight.grad, exact[1]) < 6e-3
    assert not torch.equal(weight.grad, weight.grad.bfloat16().float())


@pytest.mark.parametrize("labelled", [0, 1, 127, 128, 129, 300, 511, 512])
def test_sizes_are_round_whatever_is_labelled(monkeypatch, labelled):
    seen = []
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **kw: seen.append(a.shape) or real(a, b, **kw))
    hidden, weight, labels = inputs(512, 8, 40, masked=0.0)
    labels[torch.randperm(512)[: 512 - labelled]] = IGNORE
    sums, grads = naive(hidden, weight, labels, 0.1) if labelled else ([0.0], None)
    out = head_loss(hidden, weight, labels, z_weight=0.1)
    assert out.labelled == labelled
    assert out.loss_sum.item() == pytest.approx(sums[0], rel=1e-12)
    assert {n for shape in seen for n in shape} <= {40, 8, 128, 256, 384, 512}
    if grads:
        found = torch.autograd.grad(out.loss_sum, (hidden, weight))
        torch.testing.assert_close(found, grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("vocab", [8192, 125_696])
@pytest.mark.parametrize("z_weight", [0.0, 2e-4])
def test_fp32_agrees_with_float64_to_1e_6(vocab, z_weight):
    hidden, weight, labels = inputs(384, 384, vocab, torch.float32)
    sums, grads = naive(hidden, weight, labels, z_weight)
    out = head_loss(hidden, weight, labels, z_weight=z_weight, chunk_tokens=100)
    out.loss_sum.backward()
    assert out.loss_sum.item() == pytest.approx(sums[0], rel=1e-6)
    assert out.ce_sum.item() == pytest.approx(sums[1], rel=1e-6)
    assert out.z_sum.item() == pytest.approx(sums[2], rel=1e-6)
    assert relative(hidden.grad, grads[0]) < 1e-6
    assert relative(weight.grad, grads[1]) < 1e-6


def test_bf16_is_as_close_as_the_plain_loss_in_bf16():
    hidden, weight, labels = inputs(300, 64, 8192, torch.bfloat16)
    sums, grads = naive(hidden, weight, labels, 2e-4)
    out = head_loss(hidden, weight, labels, z_weight=2e-4, chunk_tokens=64)
    out.loss_sum.backward()
    fused = [relative(x.grad, g) for x, g in zip((hidden, weight), grads, strict=True)]
    hidden.grad = weight.grad = None
    rows = F.normalize(weight.float(), dim=-1).bfloat16()
    logits = F.linear(hidden, rows).float()[labels != IGNORE]
    ce = F.cross_entropy(logits, labels[labels != IGNORE], reduction="sum")
    (ce + 2e-4 * logits.max(-1).values.square().sum()).backward()
    plain = [relative(x.grad, g) for x, g in zip((hidden, weight), grads, strict=True)]
    assert out.loss_sum.dtype == torch.float32
    assert weight.grad.dtype == torch.bfloat16
    assert out.loss_sum.item() == pytest.approx(sums[0], rel=1e-4)
    assert fused[0] < 1.1 * plain[0]
    assert fused[1] < 1.1 * plain[1]


def test_bf16_accumulates_the_weight_gradient_in_fp32():
    """512 chunks of one label each: bf16 sums would stop growing at 256."""
    hidden = torch.ones(512, 4, dtype=torch.bfloat16)
    weight = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(512, dtype=torch.int64)
    out = head_loss(hidden, weight, labels, z_weight=0.0, norm_head=False, chunk_tokens=1)
    out.loss_sum.backward()
    expected = torch.tensor([-2 / 3, 1 / 3, 1 / 3], dtype=torch.float64) * 512
    assert relative(weight.grad, expected[:, None].expand(3, 4)) < 2**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunk_size_changes_rounding_alone(dtype):
    hidden, weight, labels = inputs(100, 16, 700, dtype)
    results = []
    for chunk in (None, 1, 33, 100, 1000):
        out = head_loss(hidden, weight, labels, z_weight=2e-4, chunk_tokens=chunk)
        grads = torch.autograd.grad(out.loss_sum, (hidden, weight))
        results.append((out.loss_sum.double(), *(g.double() for g in grads)))
    # The product of each chunk is rounded to the dtype, so chunks change bf16 results slightly.
    limit = 1e-6 if dtype == torch.float32 else 2**-8
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert relative(a, b) < limit


def test_blocks_of_rows_do_not_change_the_results(monkeypatch):
    hidden, weight, labels = inputs(50, 16, 700)
    whole = head_loss(hidden, weight, labels, z_weight=0.1)
    expected = torch.autograd.grad(whole.loss_sum, (hidden, weight))
    monkeypatch.setitem(head_sizes.BLOCK_BYTES, "cpu", 700 * 8 * 3)
    monkeypatch.setitem(head_sizes.WEIGHT_ROWS, "cpu", 64)
    blocks = head_loss(hidden, weight, labels, z_weight=0.1)
    found = torch.autograd.grad(blocks.loss_sum, (hidden, weight))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.5, 1e-4])
def test_gradients_are_scaled_by_what_comes_in(scale):
    hidden, weight, labels = inputs(9, 4, 11)
    first, second = (head_loss(hidden, weight, labels, z_weight=0.1) for _ in range(2))
    once = torch.autograd.grad(first.loss_sum, (hidden, weight))
    found = torch.autograd.grad(second.loss_sum * scale, (hidden, weight))
    torch.testing.assert_close(found, tuple(scale * g for g in once), rtol=1e-12, atol=1e-15)


def test_the_logged_sums_carry_no_gradient():
    hidden, weight, labels = inputs(9, 4, 11)
    out = head_loss(hidden, weight, labels, z_weight=0.1)
    assert out.loss_sum.requires_grad
    for value in (out.ce_sum, out.z_sum, out.z2_sum):
        assert not value.requires_grad
        assert value.dtype == torch.float64


@pytest.mark.parametrize("tokens", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_labelled_is_zero_and_not_nan(tokens, dtype):
    hidden, weight, _ = inputs(tokens, 4, 11, dtype)
    labels = torch.full((tokens,), IGNORE)
    out = head_loss(hidden, weight, labels, z_weight=2e-4)
    out.loss_sum.backward()
    assert out.labelled == 0
    for value in (out.loss_sum, out.ce_sum, out.z_sum, out.z2_sum):
        assert value.item() == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_masked_tokens_take_no_part():
    hidden, weight, labels = inputs(20, 4, 11, masked=0.5)
    out = head_loss(hidden, weight, labels, z_weight=0.1)
    grad = torch.autograd.grad(out.loss_sum, hidden)[0]
    masked = labels == IGNORE
    assert (grad[masked] == 0).all()
    assert (grad[~masked] != 0).any(-1).all()
    kept = head_loss(hidden[~masked], weight, labels[~masked], z_weight=0.1)
    assert kept.loss_sum.item() == out.loss_sum.item()


@pytest.mark.parametrize("which", ["hidden", "weight", "neither"])
def test_only_the_wanted_gradients_are_computed(monkeypatch, which):
    hidden, weight, labels = inputs(9, 4, 11)
    expected = dict(zip(("hidden", "weight"), naive(hidden, weight, labels, 0.1)[1], strict=True))
    products = []
    real = torch.mm

    def counted(a, b, **kwargs):
        products.append((tuple(a.shape), tuple(b.shape)))
        return real(a, b, **kwargs)

    monkeypatch.setattr(torch, "mm", counted)
    wanted = {"hidden": hidden, "weight": weight}
    for name, tensor in wanted.items():
        tensor.requires_grad_(name == which)
    out = head_loss(hidden, weight, labels, z_weight=0.1)
    if which == "neither":
        assert not out.loss_sum.requires_grad
    else:
        out.loss_sum.backward()
        torch.testing.assert_close(wanted[which].grad, expected[which], rtol=1e-9, atol=1e-12)
    assert len(products) == (1 if which == "neither" else 2)


def test_no_grad_skips_the_gradient_work(monkeypatch):
    def refuse(*_):
        raise AssertionError("gradient work")

    monkeypatch.setattr(head_weight.WeightGradient, "add", refuse)
    hidden, weight, labels = inputs(9, 4, 11)
    with torch.no_grad():
        out = head_loss(hidden, weight, labels, z_weight=0.1)
    assert out.loss_sum.item() == pytest.approx(naive(hidden, weight, labels, 0.1)[0][0])
    with pytest.raises(AssertionError, match="gradient work"):
        head_loss(hidden, weight, labels, z_weight=0.1)


def test_a_row_of_zeros_gives_no_nan():
    hidden, weight, labels = inputs(9, 4, 11)
    with torch.no_grad():
        weight[3] = 0.0
    _, grads = naive(hidden, weight, labels, 0.1)
    out = head_loss(hidden, weight, labels, z_weight=0.1)
    found = torch.autograd.grad(out.loss_sum, (hidden, weight))
    torch.testing.assert_close(found, grads, rtol=1e-9, atol=1e-12)


def test_large_logits_do_not_overflow():
    hidden, weight, labels = inputs(9, 4, 11, torch.float32)
    hidden = (hidden.detach() * 1e4).requires_grad_()
    sums, grads = naive(hidden, weight, labels, 2e-4)
    out = head_loss(hidden, weight, labels, z_weight=2e-4)
    out.loss_sum.backward()
    assert out.loss_sum.item() == pytest.approx(sums[0], rel=1e-6)
    assert relative(hidden.grad, grads[0]) < 1e-6


@pytest.mark.parametrize("wrong", [11, 130_000, -1, -101])
def test_a_label_outside_the_vocabulary_is_an_error(wrong):
    hidden, weight, labels = inputs(9, 4, 11)
    labels[2], labels[6] = IGNORE, wrong
    with pytest.raises(DataError, match=f"label {wrong} is outside the vocabulary of 11") as info:
        head_loss(hidden, weight, labels, z_weight=0.0)
    assert info.value.where == "token 6 of the batch"
    assert info.value.exit_code == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.ones(3, 5)}, "does not fit weight"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "labels for 3 tokens"),
        ({"weight": torch.ones(7, 4).bfloat16()}, "float32 but weight is torch.bfloat16"),
        ({"hidden": torch.ones(3, 4).half(), "weight": torch.ones(7, 4).half()}, "not supported"),
    ],
)
def test_refuses_what_does_not_belong_together(change, message):
    given_ = {
        "hidden": torch.ones(3, 4),
        "weight": torch.ones(7, 4),
        "labels": torch.zeros(3, dtype=torch.int64),
    }
    head_loss(**given_, z_weight=0.0)
    with pytest.raises(ValueError, match=message):
        head_loss(**{**given_, **change}, z_weight=0.0)


def test_nan_in_is_nan_out():
    hidden, weight, labels = inputs(9, 4, 1101, masked=0.0)
    with torch.no_grad():
        hidden[3, 2] = float("nan")
    assert head_loss(hidden, weight, labels, z_weight=2e-4).loss_sum.isnan()


@given(tokens=st.integers(0, 20_000), vocab=st.sampled_from([64, 16_384, 125_696]))
def test_chunks_are_even_and_fit(tokens, vocab):
    size = chunk_size(tokens, vocab, "cpu")
    assert size % 64 == 0
    assert size > 0
    assert size * vocab <= CHUNK_LOGITS["cpu"]
    if tokens > size:
        # the last chunk is not much shorter than the others
        count = -(-tokens // size)
        assert tokens - (count - 1) * size >= size - 64 * count


def test_the_logits_never_exist():
    """The largest tensor that is made has the size of a chunk, whatever the number of tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple) else (out,)
            sizes.extend(x.untyped_storage().nbytes() for x in made if isinstance(x, torch.Tensor))
            return out

    hidden, weight, labels = inputs(512, 8, 4096, torch.float32)
    with Watch():
        out = head_loss(hidden, weight, labels, z_weight=2e-4, chunk_tokens=16)
        out.loss_sum.backward()
    logits = 512 * 4096 * 4
    assert max(sizes) <= logits // 16
    assert max(sizes) >= 16 * 4096 * 4


@pytest.mark.parametrize("masked", [0.0, 0.02, 0.5, 1.0])
def test_one_compiled_pass_over_the_logits_agrees_with_the_plain_loss(monkeypatch, masked):
    monkeypatch.setattr(head_loss_module, "_compiles_softmax", lambda device, compiled: compiled)
    hidden, weight, labels = inputs(300, 6, 700, masked=0.0)
    labels[torch.randperm(300)[: int(masked * 300)]] = IGNORE
    options = {"z_weight": 0.1, "chunk_tokens": 128}
    plain = head_loss(hidden, weight, labels, **options)
    expected = torch.autograd.grad(plain.loss_sum, (hidden, weight))
    out = head_loss(hidden, weight, labels, compiled=True, **options)
    found = torch.autograd.grad(out.loss_sum, (hidden, weight))
    torch.testing.assert_close(out[:5], plain[:5], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_of_equal_largest_logits_one_compiled_pass_moves_the_first_alone():
    logits = torch.zeros(1, 600, dtype=torch.float64)
    logits[0, [3, 400]] = 2.0
    ours, plain = logits.clone(), logits.clone()
    labels = torch.tensor([3])
    for compute, x in ((compiled_token_losses_, ours), (token_losses_, plain)):
        ce, z = (torch.zeros(1, dtype=torch.float64) for _ in range(2))
        compute(x, labels, ce, z, 0.5)
        assert z.item() == 2.0
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)
    assert ours[0, 3] - ours[0, 400] == pytest.approx(0.5 * 2 * 2.0 - 1.0)


def test_a_nan_logit_is_a_nan_loss_in_one_compiled_pass():
    logits = torch.zeros(2, 600)
    logits[0, 5] = torch.nan
    ce, z = torch.zeros(2), torch.zeros(2)
    compiled_token_losses_(logits, torch.tensor([1, 2]), ce, z, 2e-4)
    assert ce.isnan().tolist() == z.isnan().tolist() == [True, False]


@pytest.mark.parametrize("masked", [0, 1, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_labels_on_the_host_nothing_waits_for_a_device(monkeypatch, dtype, masked):
    # A meta tensor has no values: code that needs one on the host cannot run on it.
    labels = torch.arange(256) % 50
    labels[:masked] = IGNORE
    real, launched = torch.mm, []
    monkeypatch.setattr(
        torch, "mm", lambda a, b, **kw: launched.append(kw.get("out_dtype")) or real(a, b, **kw)
    )
    monkeypatch.setitem(head_sizes.WEIGHT_ROWS, "meta", 32_768)
    hidden = torch.empty(256, 16, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.empty(50_000, 16, device="meta", requires_grad=True)
    out = head_loss(hidden, weight, labels, z_weight=2e-4, chunk_tokens=128)
    out.loss_sum.backward()
    assert out.labelled == 256 - masked
    assert hidden.grad.shape == hidden.shape
    if dtype == torch.bfloat16:
        # The first chunk's product comes in fp32, and the second one's in two blocks of rows.
        assert launched.count(torch.float32) == 3


def test_the_factor_of_the_hidden_gradient_is_not_rounded_to_bf16():
    hidden, weight, labels = inputs(300, 32, 1500, torch.bfloat16, masked=0.0)
    grads = []
    for tokens in (1, 300):  # in bf16 1/300 is 0.2% too small
        out = head_loss(hidden, weight, labels, z_weight=2e-4)
        grads.append(torch.autograd.grad(out.loss_sum / tokens, hidden)[0].double())
    # Each number is rounded up or down; a rounded factor would shift all alike.
    ratio = (grads[1] * 300).abs().sum() / grads[0].abs().sum()
    assert ratio.item() == pytest.approx(1.0, abs=2e-4)
