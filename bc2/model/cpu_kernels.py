"""Backward passes on a CPU in bf16, by the matrix products that are fast there.

torch's flash kernel for CPUs is fast forward; its backward pass is the largest part of a
training step there. Compiled, the plain formulas over whole score matrices take about half of
its time in bf16, for memory that grows with the square of a document (limited: see `MOST_SCORES`).

Shapes:
    T  tokens      I, O  inputs and outputs of a linear layer
    B  documents of one length      S  their tokens      H  heads      K  channels of a head
    N  B · H, every head of every document
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Attention scores held at once, in each of about four bf16 buffers; at least one head's.
MOST_SCORES = 16 << 20


def attend_by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √K) v, causally: [B, S, H, K] on a CPU -> [B, S, H, K]."""
    out: Tensor = _Attention.apply(*(x.transpose(1, 2) for x in (q, k, v)))  # type: ignore[no-untyped-call]
    return out.transpose(1, 2)


def linear_by_bmm(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ, for compiled layers: [T, I], [O, I] -> [T, O].

    The gradient of W, gᵀ x, sums over tokens, which neither g nor x has next to each other in
    memory. A CPU's product takes twice as long for that, so the narrower of the two is
    transposed first, which the compiler does in passing.
    """
    out: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        if x.shape[1] < grad.shape[1]:
            grad_weight = _product(x.t().contiguous(), grad).t().contiguous()
        else:
            grad_weight = _product(grad.t().contiguous(), x)
        return grad @ weight, grad_weight


# A custom operator: with torch's own, the compiler would undo the change of layout.
@torch.library.custom_op("bc2::product", mutates_args=())
def _product(x: Tensor, y: Tensor) -> Tensor:
    """x y: [A, B] and [B, C] -> [A, C]."""
    return torch.mm(x, y)


@_product.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[1])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, H, S, K]
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, log_sum = flash(q, k, v, dropout_p=0.0, is_causal=True)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        *saved, log_sum = ctx.saved_tensors
        tensors = (grad, *saved)
        shape = grad.shape
        heads, length = shape[:2].numel(), shape[2]
        # log Σ exp of scores before they are divided by √K, as the product below has them.
        log_sum = _columns(log_sum.reshape(heads, length) * shape[-1] ** 0.5)
        size = max(1, MOST_SCORES // length**2)
        if size >= heads:
            return tuple(x.view(shape) for x in _compiled()(*tensors, log_sum))
        flat = (*(x.reshape(heads, length, -1) for x in tensors), log_sum)
        parts = [
            _compiled()(*(x[first : first + size] for x in flat)) for first in range(0, heads, size)
        ]
        return tuple(torch.cat(x).view(shape) for x in zip(*parts, strict=True))


def _columns(x: Tensor) -> Tensor:
    """fp32 [N, S] as the sum of three columns in bf16, 8 bits each: [N, S, 3].

    Not compiled: the compiler would leave the roundings out that this is about.
    """
    high = x.bfloat16()
    middle = (x - high.float()).bfloat16()
    low = (x - high.float() - middle.float()).bfloat16()
    return torch.stack((high, middle, low), dim=-1)


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # Only when needed: importing torch's compiler takes a second. With dynamic shapes: packed
    # documents come in many.
    return torch.compile(_gradients, dynamic=None)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, [N, S, K] each.

    With P the probabilities: dv = Pᵀ do, dS = P · (do vᵀ - rowsum(do · o)) / √K, dq = dS k and
    dk = dSᵀ q (FlashAttention, arXiv 2205.14135, appendix B.2).

    Args:
        grad, q, k, v, out: [N, S, K], or [B, H, S, K].
        log_sum: √K log Σ exp of the scores, in columns [N, S, 3].
    """
    heads, length = log_sum.shape[:2]
    grad, q, k, v, out = (x.reshape(heads, length, -1) for x in (grad, q, k, v, out))
    scale = q.shape[-1] ** -0.5
    place = torch.arange(length, dtype=torch.int32)
    seen = place[:, None] >= place
    # The compiler writes whole matrices of exp() to memory where they are used twice, and of
    # exp2() not.
    less = _bmm_less(q, k, log_sum) * (scale * math.log2(math.e))
    p = torch.where(seen, less.exp2(), 0.0)
    along = (grad.float() * out.float()).sum(-1, keepdim=True)
    inner = torch.bmm(grad, v.transpose(1, 2)).float()
    ds = (p * (inner - along) * scale).to(q.dtype)
    dv = torch.bmm(p.to(q.dtype).transpose(1, 2), grad)
    return torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), dv


def _bmm_less(x: Tensor, y: Tensor, less: Tensor) -> Tensor:
    """x yᵀ - less, rounded to 16 bits after the subtraction: [N, S, K] twice, [N, S, 3].

    A score is large, and its distance from log Σ exp is small where the probability is large:
    rounding the score itself would cost more than all other roundings to bf16 together.
    """
    fill = -(x.shape[-1] + 3) % 32  # what matrix units take at a time
    left = F.pad(torch.cat((x, -less), dim=-1), (0, fill))
    right = F.pad(torch.cat((y, torch.ones_like(less)), dim=-1), (0, fill))
    return torch.bmm(left, right.transpose(1, 2)).float()
