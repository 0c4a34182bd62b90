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
from bc2.model import attention
from bc2.model.attention import alibi_bias, alibi_slopes, attend, choose_backend


def cu_seqlens(lengths):
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def naive(q, k, v, lengths, slopes=None):
    """Attention in float64 with one mask over all tokens, filled by loops over positions."""
    q, k, v = q.double(), k.double(), v.double()
    bias = torch.full((q.shape[1], len(q), len(q)), -math.inf, dtype=torch.float64)
    first = 0
    for length in lengths:
        for i in range(length):
            for j in range(i + 1):
                tilt = 0 if slopes is None else slopes.double() * (j - i)
                bias[:, first + i, first + j] = tilt
        first += length
    scores = torch.einsum("ihk,jhk->hij", q, k) / math.sqrt(q.shape[-1]) + bias
    return torch.einsum("hij,jhk->ihk", scores.softmax(-1), v)


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


def test_alibi_bias_is_exact_at_distant_positions():
    # In 16 bits the distances 4095 and 4094 are the same number.
    bias = alibi_bias(alibi_slopes(2), 4097, torch.device("cpu"), torch.float32)
    assert bias[0, -1, :3].tolist() == [-4096 / 16, -4095 / 16, -4094 / 16]


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

    def __init__(self, dtype):
        self.dtype = dtype


@pytest.mark.parametrize(
    ("dtype", "capability", "installed", "alibi", "chosen"),
    [
        (torch.bfloat16, 9, {"flash_attn", "torch.nn.attention.varlen"}, False, "flash"),
        (torch.bfloat16, 9, {"flash_attn", "torch.nn.attention.varlen"}, True, "flash"),
        (torch.bfloat16, 9, {"torch.nn.attention.varlen"}, False, "varlen"),
        (torch.bfloat16, 9, {"torch.nn.attention.varlen"}, True, "sdpa"),
        (torch.float16, 8, set(), False, "sdpa"),
        (torch.bfloat16, 7, {"flash_attn"}, False, "sdpa"),
        (torch.float32, 9, {"flash_attn"}, False, "sdpa"),
    ],
)
def test_auto_takes_what_is_there(monkeypatch, dtype, capability, installed, alibi, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr(attention, "_is_installed", installed.__contains__)
    slopes = alibi_slopes(2) if alibi else None
    assert choose_backend(CudaTensor(dtype), slopes) == chosen


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
    assert window_size == (-1, 0), "not causal"
    assert return_aux is None
    assert scale is None
    assert queries == keys
    return naive(query, key, value, queries)


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
):
    """A function with flash-attn's signature since 2.5, which computes what flash-attn documents.

    Its ALiBi is -slope · |query's position - key's|, with slopes in fp32.
    """
    queries, keys = lengths_of(cu_seqlens_q), lengths_of(cu_seqlens_k)
    assert (max_seqlen_q, max_seqlen_k) == (max(queries), max(keys))
    assert causal
    assert alibi_slopes is None or alibi_slopes.dtype == torch.float32
    assert queries == keys
    return naive(q, k, v, queries, alibi_slopes)


@pytest.fixture
def fakes(monkeypatch):
    """Replaces the two kernels that need a GPU by references with the same signatures."""
    varlen = types.ModuleType("torch.nn.attention.varlen")
    varlen.varlen_attn = fake_varlen_attn
    flash = types.ModuleType("flash_attn")
    flash.flash_attn_varlen_func = fake_flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", flash)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("backend", "alibi"), [("varlen", False), ("flash", False), ("flash", True)]
)
@pytest.mark.parametrize("lengths", [[4, 4], [3, 1, 5]])
def test_kernels_get_the_arguments_that_mean_the_same(backend, alibi, lengths):
    q, k, v = qkv(lengths)
    slopes = alibi_slopes(3) if alibi else None
    call = (q, k, v, cu_seqlens(lengths), max(lengths), slopes)
    torch.testing.assert_close(
        attend(*call, backend), attend(*call, "sdpa"), rtol=1e-10, atol=1e-12
    )


def test_the_fake_has_the_installed_torchs_signature():
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    real = inspect.signature(varlen_attn).parameters
    ours = inspect.signature(fake_varlen_attn).parameters
    assert [p for p in real if p in ours] == list(ours)
    for name in ours:
        assert real[name].kind == ours[name].kind


def test_varlen_refuses_alibi():
    q, k, v = qkv([4])
    with pytest.raises(UsageError, match="no ALiBi"):
        attend(q, k, v, cu_seqlens([4]), 4, alibi_slopes(3), "varlen")


def test_flash_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    q, k, v = qkv([4])
    with pytest.raises(UsageError, match=r"bc2\[cuda\]"):
        attend(q, k, v, cu_seqlens([4]), 4, backend="flash")
