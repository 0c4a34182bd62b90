"""Each backend against a naive masked softmax in float64."""

import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.errors import UsageError
from bc2.model import attention, cuda_kernels
from bc2.model.alibi_channels import alibi_channels
from bc2.model.attention import (
    Documents,
    alibi_slopes,
    attend,
    choose_backend,
    document_positions,
)


def cu_seqlens(lengths):
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def naive(q, k, v, lengths, slopes=None, window=None):
    """Attention in float64, document by document, with a mask and ALiBi's bias written out."""
    q, k, v = q.double(), k.double(), v.double()
    done = []
    for x, y, z in zip(*(t.split(list(lengths)) for t in (q, k, v)), strict=True):
        place = torch.arange(len(x), dtype=torch.float64)
        distance = place[None, :] - place[:, None]
        scores = torch.einsum("ihk,jhk->hij", x, y) / math.sqrt(q.shape[-1])
        if slopes is not None:
            scores = scores + slopes.double()[:, None, None] * distance
        hidden = distance > 0 if window is None else (distance > 0) | (distance <= -window)
        scores = scores.masked_fill(hidden, -math.inf)
        done.append(torch.einsum("hij,jhk->ihk", scores.softmax(-1), z))
    return torch.cat(done)


def qkv(lengths, heads=3, size=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = sum(lengths), heads, size
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(3)
    ]


def test_slopes_of_a_power_of_two_are_geometric():
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]


def test_slopes_of_40_heads_are_in_the_released_order():
    exponents = [-0.25 * h for h in range(1, 33)] + [-0.125 - 0.25 * h for h in range(8)]
    expected = torch.tensor([2.0**e for e in exponents])
    assert alibi_slopes(40).dtype == torch.float32
    assert torch.equal(alibi_slopes(40), expected)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 12, 14, 20, 40])
def test_slopes_agree_with_the_recursive_rule(heads):
    def rule(n):
        if n & (n - 1) == 0:
            first = 2 ** -(2 ** -(math.log2(n) - 3))
            return [first ** (i + 1) for i in range(n)]
        below = 1 << (n.bit_length() - 1)
        return rule(below) + rule(2 * below)[0::2][: n - below]

    assert alibi_slopes(heads).tolist() == pytest.approx(rule(heads), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(
        st.one_of(st.integers(0, 9), st.sampled_from([63, 64, 65, 128, 130])),
        min_size=1,
        max_size=5,
    ).filter(any),
    alibi=st.booleans(),
    seed=st.integers(0, 99),
)
def test_segments_agree_with_the_naive_mask(lengths, alibi, seed):
    q, k, v = qkv(lengths, seed=seed)
    slopes = alibi_slopes(3) if alibi else None
    out = attend(q, k, v, cu_seqlens(lengths), max(lengths), slopes)
    expected = naive(q, k, v, lengths, slopes)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), cotangent)
    wanted = torch.autograd.grad(expected, (q, k, v), cotangent)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lengths", [[64, 64], [40, 88]])
@pytest.mark.parametrize("alibi", [False, True])
def test_bf16_is_within_the_rounding_of_bf16(lengths, alibi):
    q, k, v = qkv(lengths, heads=4, size=16, dtype=torch.bfloat16)
    slopes = alibi_slopes(4) if alibi else None
    out = attend(q, k, v, cu_seqlens(lengths), max(lengths), slopes)
    assert out.dtype == torch.bfloat16
    expected = naive(q, k, v, lengths, slopes)
    assert (out.double() - expected).norm() / expected.norm() < 2**-8


#: A steep slope, whose bias is far larger than the scores that are left, and a mild one.
STEEP = torch.tensor([2**-0.125, 2**-8.0])


def relative_errors(found, right):
    """Of each head, the largest."""
    errors = (found.double() - right).norm(dim=(0, 2)) / right.norm(dim=(0, 2))
    return errors.max().item()


def check_against_float64(lengths, size, dtype, backend, alibi):
    """Results and gradients, head by head."""
    q, k, v = qkv(lengths, heads=2, size=size, dtype=dtype)
    slopes = STEEP if alibi else None
    out = attend(q, k, v, cu_seqlens(lengths), max(lengths), slopes, backend)
    right = naive(q, k, v, lengths, slopes)
    assert out.shape == q.shape
    assert out.dtype == dtype
    cotangent = qkv(lengths, heads=2, size=size, dtype=dtype, seed=1)[0].detach()
    found = torch.autograd.grad(out, (q, k, v), cotangent)
    wanted = torch.autograd.grad(right, (q, k, v), cotangent.double())
    limit, grad_limit = (2e-6, 2e-6) if dtype == torch.float32 else (2**-8, 2**-6)
    assert relative_errors(out.detach(), right.detach()) < limit
    for mine, exact in zip(found, wanted, strict=True):
        assert mine.dtype == dtype
        assert (mine - exact).norm() < grad_limit * exact.norm()
        # Documents of one token have no gradient of q and k to be relative to.
        if max(lengths) > 1:
            assert relative_errors(mine, exact) < grad_limit


@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [64, 128, 160])
def test_ragged_documents_against_float64(size, dtype, alibi):
    check_against_float64([700, 1, 129, 64, 3], size, dtype, "auto", alibi)


@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [[3, 3], [64, 64], [129]], ids=str)
def test_documents_of_one_length_against_float64(lengths, dtype, alibi):
    check_against_float64(lengths, 128, dtype, "auto", alibi)


@pytest.mark.slow
@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_4096_tokens_against_float64(dtype, alibi):
    check_against_float64([4096], 128, dtype, "auto", alibi)


@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize("backend", ["sdpa", "bmm"])
@pytest.mark.parametrize("key_heads", [1, 2, 3])
def test_a_key_head_is_read_by_its_query_heads(key_heads, backend, alibi):
    """With gradients: those of a key head are the sum of what its query heads give."""
    lengths, heads = (5, 70, 1, 64), 6
    slopes = alibi_slopes(heads) if alibi else None
    q = qkv(lengths, heads)[0]
    k, v = qkv(lengths, key_heads, seed=1)[:2]
    out = attend(q, k, v, cu_seqlens(lengths), max(lengths), slopes, backend)
    every = [x.repeat_interleave(heads // key_heads, 1) for x in (k, v)]
    expected = naive(q, *every, lengths, slopes)
    torch.testing.assert_close(out, expected)
    seed = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), seed)
    right = torch.autograd.grad(expected, (q, k, v), seed)
    for mine, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_alibi_of_some_heads_is_the_whole_ones():
    lengths = [70, 9]
    q, k, v = qkv(lengths, heads=4, size=8)
    slopes = alibi_slopes(4)
    positions = document_positions(cu_seqlens(lengths), 79)
    documents = Documents(cu_seqlens(lengths), 70, positions, slopes)
    some = documents.attend(*(x[:, 1:3] for x in (q, k, v)), heads=slice(1, 3))
    expected = naive(q, k, v, lengths, slopes)[:, 1:3]
    torch.testing.assert_close(some, expected, rtol=1e-10, atol=1e-12)


def test_layers_share_what_is_made_of_the_documents(monkeypatch):
    made = []
    real = alibi_channels

    def counted(*args):
        made.append(args)
        return real(*args)

    monkeypatch.setattr(attention, "alibi_channels", counted)
    lengths = [70, 9]
    q, k, v = qkv(lengths, dtype=torch.float32)
    positions = document_positions(cu_seqlens(lengths), 79)
    documents = Documents(cu_seqlens(lengths), 70, positions, alibi_slopes(3))
    first = documents.attend(q, k, v)
    assert torch.equal(first, documents.attend(q, k, v))
    assert len(made) == 1


def test_kernels_see_few_shapes_whatever_documents_come(monkeypatch):
    seen = set()
    real = F.scaled_dot_product_attention

    def watched(q, k, v, **options):
        seen.add(tuple(q.shape[1:]))
        return real(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    for seed in range(30):
        drawn = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 257, (6,), generator=drawn).tolist()
        q, k, v = qkv(lengths, seed=seed)
        attend(q, k, v, cu_seqlens(lengths), max(lengths))
    assert {length for _, length, _ in seen} == {64, 128, 192, 256}


def test_a_forward_pass_trains_after_one_in_inference_mode():
    lengths = [70, 9]
    q, k, v = qkv(lengths)
    with torch.inference_mode():
        attend(q, k, v, cu_seqlens(lengths), 70)
    attend(q, k, v, cu_seqlens(lengths), 70).sum().backward()
    assert v.grad is not None


def test_empty_documents_are_nothing():
    lengths = [3, 0, 2]
    q, k, v = qkv(lengths)
    out = attend(q, k, v, cu_seqlens(lengths), 3)
    torch.testing.assert_close(out, naive(q, k, v, lengths), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrong", [[0, 3], [1, 5], [0, 7, 5], [0, 9]])
def test_refuses_boundaries_that_do_not_divide_the_tokens(wrong):
    q, k, v = qkv([5])
    with pytest.raises(ValueError, match="does not divide 5 tokens"):
        attend(q, k, v, torch.tensor(wrong, dtype=torch.int32), 5)


def test_auto_is_sdpa_on_a_cpu():
    q = torch.empty(1, 1, 8, dtype=torch.bfloat16)
    assert choose_backend(q, None) == "sdpa"


class CudaTensor:
    """What `choose_backend` reads of a tensor on a GPU."""

    device = torch.device("cuda", 0)

    def __init__(self, dtype, size):
        self.dtype = dtype
        self.shape = (640, 2, size)


BF16, BOTH = torch.bfloat16, {"flash", "varlen"}


@pytest.mark.parametrize(
    ("dtype", "capability", "size", "installed", "alibi", "one_length", "chosen"),
    [
        (BF16, 9, 128, BOTH, False, True, "sdpa"),
        (BF16, 9, 128, BOTH, False, False, "varlen"),
        (BF16, 9, 128, BOTH, True, True, "flash"),
        (BF16, 9, 128, BOTH, True, False, "flash"),
        (BF16, 9, 128, {"flash"}, False, False, "flash"),
        (BF16, 9, 128, {"varlen"}, True, True, "sdpa"),
        (BF16, 9, 128, {"varlen"}, True, False, "varlen"),
        (BF16, 9, 128, set(), True, False, "sdpa"),
        (BF16, 9, 256, {"varlen"}, False, False, "varlen"),
        (BF16, 9, 256, {"varlen"}, True, False, "sdpa"),  # 264 channels are too many
        (BF16, 9, 100, {"varlen"}, False, False, "sdpa"),
        (torch.float16, 8, 64, {"varlen"}, False, False, "varlen"),
        (BF16, 7, 128, BOTH, False, False, "sdpa"),
        (torch.float32, 9, 128, BOTH, True, False, "sdpa"),
    ],
)
def test_auto_takes_what_is_there(
    monkeypatch, dtype, capability, size, installed, alibi, one_length, chosen
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    for name in BOTH:
        there = naive if name in installed else None
        monkeypatch.setattr(cuda_kernels, f"{name}_function", lambda there=there: there)
    monkeypatch.setattr(cuda_kernels, "use_newest_flash", lambda *_: None)
    slopes = alibi_slopes(2) if alibi else None
    tensor = CudaTensor(dtype, size)
    assert choose_backend(tensor, slopes, one_length=one_length) == chosen


def lengths_of(cu_seqlens):
    assert cu_seqlens.dtype == torch.int32
    return cu_seqlens.diff().tolist()


def fake_varlen_attn(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
):
    """A function with torch's signature since 2.11, which computes what torch documents."""
    queries, keys = lengths_of(cu_seq_q), lengths_of(cu_seq_k)
    assert (max_q, max_k) == (max(queries), max(keys))
    before, after = window_size
    assert after == 0, "not causal"
    assert return_aux is None
    assert queries == keys
    # `naive` divides by the square root of K.
    factor = 1.0 if scale is None else scale * math.sqrt(query.shape[-1])
    return naive(query * factor, key, value, queries, window=None if before < 0 else before + 1)


def fake_flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
):
    """A function with flash-attn's signature since 2.5, which computes what flash-attn documents.

    Its ALiBi is -slope · |query's position - key's|, with slopes in fp32.
    """
    queries, keys = lengths_of(cu_seqlens_q), lengths_of(cu_seqlens_k)
    assert (max_seqlen_q, max_seqlen_k) == (max(queries), max(keys))
    assert causal
    assert alibi_slopes is None or alibi_slopes.dtype == torch.float32
    assert queries == keys
    before, after = window_size
    assert after == (-1 if before < 0 else 0)
    return naive(q, k, v, queries, alibi_slopes, None if before < 0 else before + 1)


@pytest.fixture
def fakes(monkeypatch):
    """Replaces the two kernels that need a GPU by references with the same signatures."""
    varlen = types.ModuleType("torch.nn.attention.varlen")
    varlen.varlen_attn = fake_varlen_attn
    flash = types.ModuleType("flash_attn")
    flash.flash_attn_varlen_func = fake_flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    forget_what_is_installed()
    yield
    forget_what_is_installed()


def forget_what_is_installed():
    cuda_kernels.varlen_function.cache_clear()
    cuda_kernels.flash_function.cache_clear()


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("backend", "alibi"),
    [("varlen", False), ("varlen", True), ("flash", False), ("flash", True)],
)
@pytest.mark.parametrize("lengths", [[4, 4], [3, 1, 5]])
def test_kernels_get_the_arguments_that_mean_the_same(backend, alibi, lengths):
    q, k, v = qkv(lengths)
    slopes = alibi_slopes(3) if alibi else None
    call = (q, k, v, cu_seqlens(lengths), max(lengths), slopes)
    torch.testing.assert_close(
        attend(*call, backend), attend(*call, "sdpa"), rtol=1e-10, atol=1e-12
    )


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("backend", ["varlen", "flash", "sdpa", "bmm"])
@pytest.mark.parametrize("lengths", [[64, 64], [3, 70, 1, 5]], ids=str)
@pytest.mark.parametrize("window", [1, 4, 65, 70, 1000])
def test_a_window_is_the_last_keys_alone(backend, lengths, window):
    q, k, v = qkv(lengths)
    bounds = cu_seqlens(lengths)
    out = attend(q, k, v, bounds, max(lengths), backend=backend, window=window)
    expected = naive(q, k, v, lengths, window=window)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    seed = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), seed)
    right = torch.autograd.grad(expected, (q, k, v), seed)
    for mine, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_a_window_that_no_document_leaves_changes_no_bit():
    q, k, v = qkv([3, 70, 64], dtype=torch.bfloat16)
    call = (q, k, v, cu_seqlens([3, 70, 64]), 70)
    assert torch.equal(attend(*call), attend(*call, window=70))
    assert not torch.equal(attend(*call), attend(*call, window=69))


def test_the_fake_has_the_installed_torchs_signature():
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    real = inspect.signature(varlen_attn).parameters
    ours = inspect.signature(fake_varlen_attn).parameters
    assert [p for p in real if p in ours] == list(ours)
    for name in ours:
        assert real[name].kind == ours[name].kind


def test_varlen_says_that_it_needs_a_gpu():
    q, k, v = qkv([4], dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="'varlen' does not run on cpu"):
        attend(q, k, v, cu_seqlens([4]), 4, backend="varlen")


@pytest.mark.parametrize("package", [None, types.ModuleType("flash_attn")], ids=["none", "a stub"])
def test_flash_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    forget_what_is_installed()
    q, k, v = qkv([4])
    with pytest.raises(UsageError, match="flash_attn_varlen_func") as caught:
        attend(q, k, v, cu_seqlens([4]), 4, backend="flash")
    assert "bc2[cuda]" in caught.value.todo
    forget_what_is_installed()
