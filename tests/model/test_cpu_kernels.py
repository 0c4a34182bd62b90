"""The backward pass of attention in cpu_kernels against float64 and torch's own kernel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bc2.model import cpu_kernels
from bc2.model.attention import attend
from bc2.model.cpu_kernels import attend_by_bmm, linear_by_bmm


def draw(shape: tuple[int, ...], spread: float, seed: int = 0) -> list[Tensor]:
    """q, k, v and the gradient of the result, in bf16."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator) for _ in range(4)]
    return [(x * spread if i < 2 else x).bfloat16() for i, x in enumerate(drawn)]


def gradients(attention, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    attention(*leaves).backward(grad)
    return [x.grad for x in leaves]


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention computed by its formula: [B, S, H, K]."""
    scores = torch.einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("bhqs,bshk->bqhk", scores.masked_fill(future, -torch.inf).softmax(-1), v)


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def error(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("shape", [(2, 128, 3, 32), (1, 64, 1, 64), (3, 192, 2, 16)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_gradients_are_about_as_close_to_float64_as_the_kernels(shape, spread):
    q, k, v, grad = draw(shape, spread)
    right = gradients(exact, *(x.double() for x in (q, k, v, grad)))
    ours = gradients(attend_by_bmm, q, k, v, grad)
    theirs = gradients(kernel, q, k, v, grad)
    for mine, peer, truth in zip(ours, theirs, right, strict=True):
        # Beyond the kernel's errors: log P, about log S where attention is spread out, has been
        # rounded to 8 bits before the exponential.
        assert error(mine, truth) < error(peer, truth) + 2**-9 * math.log(shape[1])
    torch.testing.assert_close(attend_by_bmm(q, k, v), kernel(q, k, v), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 128, 3, 32), (1, 1, 1, 8), (1, 200, 2, 16), (1, 700, 2, 64)])
@pytest.mark.parametrize("heads_at_once", [1, 100])
def test_in_fp32_gradients_are_as_close_to_float64_as_the_kernels(
    monkeypatch, shape, heads_at_once
):
    monkeypatch.setattr(cpu_kernels, "MOST_SCORES", heads_at_once * 128 * shape[1])
    q, k, v, grad = (x.float() for x in draw(shape, 2.0))
    right = gradients(exact, *(x.double() for x in (q, k, v, grad)))
    ours = gradients(attend_by_bmm, q, k, v, grad)
    for mine, truth in zip(ours, right, strict=True):
        assert (mine.double() - truth).norm() <= 1e-6 * truth.norm() + 1e-12
    torch.testing.assert_close(attend_by_bmm(q, k, v), kernel(q, k, v), rtol=0, atol=0)


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 96), (96, 32), (48, 48)])
def test_a_linear_layer_by_products_has_the_layers_gradients(inputs, outputs):
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((200, inputs), (outputs, inputs), (200, outputs))
    ]
    x, weight = (t.clone().requires_grad_() for t in drawn[:2])
    out = torch.compile(linear_by_bmm)(x, weight)
    out.backward(drawn[2])
    assert torch.equal(out, F.linear(x, weight))
    assert weight.grad.is_contiguous()
    exact_x, exact_weight, exact_grad = (t.double() for t in drawn)
    assert error(x.grad, exact_grad @ exact_weight) < 2**-8
    assert error(weight.grad, exact_grad.t() @ exact_x) < 2**-8


def test_heads_in_chunks_are_the_heads_at_once(monkeypatch):
    q, k, v, grad = draw((2, 128, 3, 32), 1.0)
    whole = gradients(attend_by_bmm, q, k, v, grad)
    monkeypatch.setattr(cpu_kernels, "MOST_SCORES", 2 * 128**2)
    for chunked, once in zip(gradients(attend_by_bmm, q, k, v, grad), whole, strict=True):
        assert torch.equal(chunked, once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bits_do_not_depend_on_the_shapes_that_came_before(dtype):
    # A run that was resumed from a checkpoint sees other shapes first than an undisturbed run.
    shapes = [(2, 64, 2, 32), (1, 192, 3, 32), (4, 128, 2, 32), (1, 64, 1, 32)]
    found = []
    for order in (shapes, shapes[::-1]):
        cpu_kernels._compiled.cache_clear()
        cpu_kernels._compiled_scores.cache_clear()
        torch._dynamo.reset()
        grads = {s: gradients(attend_by_bmm, *(x.to(dtype) for x in draw(s, 1.0))) for s in order}
        found.append([grads[s] for s in shapes])
    for first, second in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("lengths", [[64, 64], [40, 88], [130]])
def test_packed_documents_agree_with_sdpa(lengths):
    q, k, v, grad = (x[0] for x in draw((1, sum(lengths), 2, 32), 1.0))
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)

    def through(backend):
        return lambda *x: attend(*x, cu_seqlens, max(lengths), backend=backend)

    ours = gradients(through("bmm"), q, k, v, grad)
    theirs = gradients(through("sdpa"), q, k, v, grad)
    for mine, peer in zip(ours, theirs, strict=True):
        assert error(mine, peer.double()) < 0.01


def test_float64_takes_the_kernel():
    q, k, v, grad = (x[0].double() for x in draw((1, 64, 2, 32), 1.0))
    cu_seqlens = torch.tensor([0, 64], dtype=torch.int32)
    for mine, peer in zip(
        gradients(lambda *x: attend(*x, cu_seqlens, 64, backend="bmm"), q, k, v, grad),
        gradients(lambda *x: attend(*x, cu_seqlens, 64, backend="sdpa"), q, k, v, grad),
        strict=True,
    ):
        assert torch.equal(mine, peer)
