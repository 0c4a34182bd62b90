"""Backward passes on a CPU, written as the matrix products that are fast there.

torch's flash-attention kernel for CPUs has a fast forward pass, but a slow backward pass: in bf16
the largest part of a training step. The plain formulas, compiled, take about half of that time
in bf16, over whole score matrices, and two thirds in fp32, over blocks of queries, which leave
out most of the keys that come later. `MOST_SCORES` limits the scores held at once.

Shapes:
    T  tokens      I, O  inputs and outputs of a linear layer
    B  documents of one length      S  their tokens      H  heads      K  channels of a head
    N  B · H, every head of every document
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: The most attention scores held at once, in each of about four bf16 buffers. The scores of one
#: head are held even if they are more.
MOST_SCORES = 16 << 20

#: Queries of a block, in fp32.
QUERIES = 128


def attend_by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √K) v with a causal mask, on a CPU: [B, S, H, K] -> [B, S, H, K].

    In bf16 or fp32.
    """
    out: Tensor = _Attention.apply(*(x.transpose(1, 2) for x in (q, k, v)))  # type: ignore[no-untyped-call]
    return out.transpose(1, 2)


def linear_by_bmm(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ, for compiled layers: [T, I], [O, I] -> [T, O].

    The gradient of W, gᵀ x, is a sum over tokens, and neither g nor x has the tokens next to
    each other in memory. On a CPU such a product takes twice as long. So the narrower of the two
    is transposed first; the compiler fuses the transposition with other operations.
    """
    out: Tensor = _Linear.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        grad_weight = None
        if wants_weight and x.shape[1] < grad.shape[1]:
            grad_weight = _product(x.t().contiguous(), grad).t().contiguous()
        elif wants_weight:
            grad_weight = _product(grad.t().contiguous(), x)
        return grad @ weight if wants_x else None, grad_weight


# A custom operator, because the compiler would undo the change of layout before torch's own.
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
        if grad.dtype != torch.bfloat16:
            all_heads = (x.reshape(heads, length, -1) for x in (*tensors, log_sum))
            return tuple(x.view(shape) for x in _gradients_by_blocks(*all_heads))
        # `_gradients` subtracts it from scores that are not yet divided by √K.
        log_sum = _bf16_columns(log_sum.reshape(heads, length) * shape[-1] ** 0.5)
        size = max(1, MOST_SCORES // length**2)
        if size >= heads:
            return tuple(x.view(shape) for x in _compiled()(*tensors, log_sum))
        flat = (*(x.reshape(heads, length, -1) for x in tensors), log_sum)
        parts = [
            _compiled()(*(x[first : first + size] for x in flat)) for first in range(0, heads, size)
        ]
        return tuple(torch.cat(x).view(shape) for x in zip(*parts, strict=True))


def _bf16_columns(x: Tensor) -> Tensor:
    """Split fp32 [N, S] into bf16 [N, S, 3]: three columns of 8 bits each that sum to it.

    Not compiled: the compiler would leave out the roundings to bf16 that this relies on.
    """
    high = x.bfloat16()
    middle = (x - high.float()).bfloat16()
    low = (x - high.float() - middle.float()).bfloat16()
    return torch.stack((high, middle, low), dim=-1)


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # Only when needed, because importing torch's compiler takes a second. Shapes may become
    # dynamic, because packed documents have many lengths.
    return torch.compile(_gradients, dynamic=None)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, [N, S, K] each.

    With P the probabilities, o the output and do its gradient: dv = Pᵀ do,
    dS = P · (do vᵀ - rowsum(do · o)) / √K, dq = dS k and dk = dSᵀ q (FlashAttention, arXiv
    2205.14135, appendix B.2).

    Args:
        grad, q, k, v, out: [N, S, K], or [B, H, S, K].
        log_sum: √K log Σ exp of the scores, from `_bf16_columns`: [N, S, 3].
    """
    heads, length = log_sum.shape[:2]
    grad, q, k, v, out = (x.reshape(heads, length, -1) for x in (grad, q, k, v, out))
    scale = q.shape[-1] ** -0.5
    place = torch.arange(length, dtype=torch.int32)
    seen = place[:, None] >= place
    # exp2(), because the compiler writes a matrix of exp() to memory if it is used twice, but
    # not a matrix of exp2().
    log2_p = _bmm_minus(q, k, log_sum) * (scale * math.log2(math.e))
    p = torch.where(seen, log2_p.exp2(), 0.0)
    row_sum = (grad.float() * out.float()).sum(-1, keepdim=True)
    dp = torch.bmm(grad, v.transpose(1, 2)).float()
    ds = (p * (dp - row_sum) * scale).to(q.dtype)
    dv = torch.bmm(p.to(q.dtype).transpose(1, 2), grad)
    return torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), dv


def _gradients_by_blocks(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `_gradients`, in fp32 or wider.

    Args:
        grad, q, k, v, out: [N, S, K].
        log_sum: log Σ exp of the scores / √K: [N, S, 1].
    """
    heads, length, _ = q.shape
    row_sum = (grad * out).sum(-1, keepdim=True)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    size = max(1, MOST_SCORES // (QUERIES * length))
    for first, begin in itertools.product(range(0, heads, size), range(0, length, QUERIES)):
        end = min(begin + QUERIES, length)
        some = slice(first, first + size)
        rows, seen = (some, slice(begin, end)), (some, slice(0, end))
        scores = torch.bmm(q[rows], k[seen].transpose(1, 2))
        ds = torch.bmm(grad[rows], v[seen].transpose(1, 2))
        _compiled_scores()(scores, ds, log_sum[rows], row_sum[rows], q.shape[-1] ** -0.5)
        dq[rows] = torch.bmm(ds, k[seen])
        dk[seen].baddbmm_(ds.transpose(1, 2), q[rows])
        dv[seen].baddbmm_(scores.transpose(1, 2), grad[rows])
    return dq, dk, dv


@cache
def _compiled_scores() -> Callable[..., None]:
    return torch.compile(_score_gradients_, dynamic=True)


def _score_gradients_(
    scores: Tensor, dp: Tensor, log_sum: Tensor, row_sum: Tensor, scale: float
) -> None:
    """Turn scores q kᵀ into probabilities P, and their gradient dP into that of the scores.

    In place, for the last queries of some keys: scores and dp [N, R, S], sums [N, R, 1].
    """
    queries, keys = scores.shape[1:]
    place = torch.arange(keys, dtype=torch.int32)
    seen = place[keys - queries :, None] >= place
    p = torch.where(seen, ((scores * scale - log_sum) * math.log2(math.e)).exp2(), 0.0)
    scores.copy_(p)
    dp.copy_(p * (dp - row_sum) * scale)


def _bmm_minus(x: Tensor, y: Tensor, columns: Tensor) -> Tensor:
    """x yᵀ minus the sum of `columns`: [N, S, K], [N, S, K], [N, S, 3] -> fp32 [N, S, S].

    The difference is rounded to bf16, not x yᵀ itself. A score is large, but where its
    probability is large its distance from log Σ exp is small. Rounding the score would cost more
    accuracy than all other roundings to bf16 together.
    """
    fill = -(x.shape[-1] + 3) % 32  # matrix units take 32 channels at a time
    left = F.pad(torch.cat((x, -columns), dim=-1), (0, fill))
    right = F.pad(torch.cat((y, torch.ones_like(columns)), dim=-1), (0, fill))
    return torch.bmm(left, right.transpose(1, 2)).float()
