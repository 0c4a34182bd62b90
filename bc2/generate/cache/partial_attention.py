"""Attention to a part of the keys, and what is needed to add other parts to it.

Softmax over a union of keys follows from softmax over its parts: with o the output and s the log
of the sum of exponentials of each part, the output over all is Σ exp(s - S) o with S = log Σ exp s
(FlashAttention, arXiv 2205.14135, section 3.1).

Shapes:
    B  batch      C  queries      C'  keys      H  heads      K  channels of a head
    T  new tokens of all segments
"""

from __future__ import annotations

import torch
from torch import Tensor

from bc2.model.head_weight import at_least_fp32


def attend_part(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √K + bias) v, and the log of the sum of exponentials.

    Args:
        q: [B, H, C, K].
        k, v: [B, H, C', K].
        bias: broadcasts to [B, H, C, C'].
        causal: query i attends to keys 0 to i.
        scale: in place of 1 / √K.

    Returns:
        [B, H, C, K] in q's dtype, and [B, H, C] in fp32 or wider.
    """
    if q.device.type == "cpu":
        if bias is not None:
            bias = bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, log_sum = flash(q, k, v, is_causal=causal, attn_mask=bias, scale=scale)
        return out, log_sum
    return attend_by_products(q, k, v, bias, causal=causal, scale=scale)


def attend_by_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`attend_part` with plain matrix products, which run on every device; without gradients.

    In place: the scores of a long text take gigabytes.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = (q @ k.transpose(-1, -2)).to(at_least_fp32(q.dtype)).mul_(scale)
    if bias is not None:
        scores += bias
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(later, -torch.inf)
    log_sum = scores.logsumexp(-1)
    return scores.sub_(log_sum[..., None]).exp_().to(q.dtype) @ v, log_sum


def merge_into(rows: Tensor, part: Tensor, part_sum: Tensor, out: Tensor, log_sum: Tensor) -> None:
    """Add a part's keys to what tokens have attended to so far, in place.

    Args:
        rows: int64 [C], distinct.
        part, part_sum: [C, H, K] and [C, H], of the part.
        out, log_sum: [T, H, K] and [T, H], of the keys so far.
    """
    before = log_sum[rows]
    total = torch.logaddexp(before, part_sum.to(before.dtype))
    kept = out[rows] * (before - total).exp()[..., None]
    out[rows] = kept.addcmul_(part.to(out.dtype), (part_sum - total).exp()[..., None])
    log_sum[rows] = total
