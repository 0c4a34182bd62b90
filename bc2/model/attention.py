"""Causal attention over packed documents, with a choice of kernels.

Shapes:
    T   query tokens of all documents, one after another
    T'  key tokens; T unless a cache holds earlier ones
    H   heads          K  channels of a head          N  documents

`cu_seqlens` [N+1] holds the boundaries: document n is tokens cu_seqlens[n] to
cu_seqlens[n+1]. Nothing attends across a boundary. Where a document has more keys
than queries, its queries are the last of its positions.

Backends:
    sdpa    torch's scaled_dot_product_attention; runs everywhere.
    bmm     sdpa with a backward pass compiled for a CPU in bf16; without ALiBi.
    varlen  torch.nn.attention.varlen (CUDA, 16 bits, no ALiBi).
    flash   the flash-attn package (CUDA, 16 bits, ALiBi inside the kernel).

The last two are tested for the arguments they are given, not yet on a GPU.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bc2.errors import UsageError
from bc2.model.cpu_kernels import attend_by_bmm

Backend = Literal["auto", "sdpa", "bmm", "varlen", "flash"]

#: Documents are filled up to a multiple of this many tokens for sdpa.
PAD_TO = 64


def alibi_slopes(num_heads: int) -> Tensor:
    """ALiBi's slope of each head, in the order of the released 13B model.

    A power of two gets the geometric series of the ALiBi paper. Any other count gets
    the series of the power of two below it, then every second slope of the one above:
    40 heads have 2^-0.25 ... 2^-8 and then 2^-0.125, 2^-0.375 ... 2^-1.875.

    Returns:
        fp32 [H], positive.
    """
    below = 2 ** int(math.log2(num_heads))
    exponents = [8 * (h + 1) / below for h in range(below)]
    exponents += [4 * (2 * h + 1) / below for h in range(num_heads - below)]
    return torch.tensor([2.0**-e for e in exponents], dtype=torch.float32)


# Where documents end is data: a compiled graph would be specialised on it and built anew
# for every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None = None,
    backend: Backend = "auto",
    *,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
) -> Tensor:
    """softmax(q kᵀ / √K + ALiBi) v within each document, causally.

    Args:
        q: [T, H, K].
        k, v: [T', H, K].
        cu_seqlens: int32 [N+1], boundaries of the queries.
        max_seqlen: the most queries in a document.
        slopes: fp32 [H] for ALiBi: adds slope · (key position - query position).
        backend: the kernel; "auto" takes the best that is there for these tensors.
        cu_seqlens_k, max_seqlen_k: the same of the keys, where they are more.

    Returns:
        [T, H, K] in q's dtype.

    Raises:
        UsageError: a backend by name that cannot run here.
        ValueError: boundaries that do not fit the tensors (sdpa on a CPU only: looking
            at them elsewhere would wait for the device).
    """
    chosen = choose_backend(q, slopes) if backend == "auto" else backend
    if cu_seqlens_k is None or max_seqlen_k is None:
        cu_seqlens_k, max_seqlen_k = cu_seqlens, max_seqlen
    if chosen in ("sdpa", "bmm"):
        kernel = _bmm_batch if chosen == "bmm" else _sdpa_batch
        lengths = _lengths(cu_seqlens, q), _lengths(cu_seqlens_k, k)
        return _sdpa(q, k, v, *lengths, slopes, kernel)
    seqlens = (cu_seqlens, cu_seqlens_k, max_seqlen, max_seqlen_k)
    if chosen == "flash":
        return _flash(q, k, v, seqlens, slopes)
    return _varlen(q, k, v, seqlens, slopes)


def choose_backend(q: Tensor, slopes: Tensor | None) -> Backend:
    """The fastest backend that is installed and can take these tensors."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        return "sdpa"
    if torch.cuda.get_device_capability(q.device)[0] < 8:
        return "sdpa"
    if _is_installed("flash_attn"):
        return "flash"
    return "varlen" if slopes is None and _is_installed("torch.nn.attention.varlen") else "sdpa"


@cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _lengths(cu_seqlens: Tensor, x: Tensor) -> list[int]:
    """Each document's length, on the host; waits for the device if they are on one."""
    ends = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != x.shape[0] or any(n < 0 for n in lengths):
        raise ValueError(f"cu_seqlens {ends} does not divide {x.shape[0]} tokens")
    return lengths


# ------------------------------------------------------------------------------- sdpa

#: [B, S, H, K] of q, k and v, and ALiBi's slopes -> [B, S, H, K].
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: list[int],
    keys: list[int],
    slopes: Tensor | None,
    whole: Kernel,
) -> Tensor:
    """Documents of any lengths; `whole` takes those that have no earlier keys."""
    if queries == keys:
        return _sdpa_packed(q, k, v, tuple(queries), slopes, whole)
    if len(set(queries)) == 1 and len(set(keys)) == 1:
        count = len(queries)
        q, k, v = (x.view(count, len(x) // count, *x.shape[1:]) for x in (q, k, v))
        return _sdpa_batch(q, k, v, slopes).flatten(0, 1)
    parts = zip(*(torch.split(x, n) for x, n in ((q, queries), (k, keys), (v, keys))), strict=True)
    done = [_sdpa_batch(q[None], k[None], v[None], slopes)[0] for q, k, v in parts if len(q)]
    return torch.cat(done) if done else torch.empty_like(q)


def _sdpa_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    slopes: Tensor | None,
    kernel: Kernel,
) -> Tensor:
    """Documents of any lengths, a batch for each length rounded up to a multiple of PAD_TO.

    What fills a document up comes after all of its tokens, so none of them sees it, and what
    it computes is dropped. Few shapes instead of ever new ones: kernels are kept by shape.
    """
    if lengths and lengths[0] % PAD_TO == 0 and len(set(lengths)) == 1:
        q, k, v = (x.view(len(lengths), lengths[0], *x.shape[1:]) for x in (q, k, v))
        return kernel(q, k, v, slopes).flatten(0, 1)
    slots, groups = _padded(lengths)
    slots = slots.to(q.device)
    rows = sum(count * length for count, length in groups)
    q, k, v = (x.new_zeros(rows, *x.shape[1:]).index_copy(0, slots, x) for x in (q, k, v))
    done = []
    start = 0
    for count, length in groups:
        span, shape = slice(start, start + count * length), (count, length, *q.shape[1:])
        batch = kernel(q[span].view(shape), k[span].view(shape), v[span].view(shape), slopes)
        done.append(batch.flatten(0, 1))
        start = span.stop
    out: Tensor = _Take.apply(torch.cat(done), slots) if done else q  # type: ignore[no-untyped-call]
    return out


@lru_cache(maxsize=8)
def _padded(lengths: tuple[int, ...]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Where documents go that are sorted by rounded length and filled up to it.

    Returns:
        int64 [T], the row of each token; and (documents, rounded length) of each group.
    """
    size = np.array(lengths, dtype=np.int64)
    rounded = -(-size // PAD_TO) * PAD_TO
    order = np.argsort(rounded, kind="stable")
    begins = np.empty_like(size)
    begins[order] = np.cumsum(rounded[order]) - rounded[order]
    shift = begins - (np.cumsum(size) - size)
    slots = np.arange(size.sum()) + np.repeat(shift, size)
    values, counts = np.unique(rounded[rounded > 0], return_counts=True)
    with torch.inference_mode(False):  # the cache outlives a generation
        where = torch.from_numpy(slots)
    return where, list(zip(counts.tolist(), values.tolist(), strict=True))


class _Take(torch.autograd.Function):
    """x[rows] for rows that are all different, so that the gradient is a copy, not a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return x.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, rows, grad), None


def _sdpa_batch(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
    """One batch of documents that are equally long: [B, S, H, K] -> [B, S, H, K]."""
    queries, keys = q.shape[1], k.shape[1]
    dtype = q.dtype
    if slopes is None:
        # torch aligns is_causal to the first query, so a cache needs a mask, but for one query.
        mask = None if queries in (1, keys) else _causal(queries, keys, q.device)
    else:
        mask = alibi_bias(slopes, queries, keys, q.device, torch.promote_types(dtype, slopes.dtype))
        if q.device.type != "cpu":
            # Other devices want the bias in q's dtype, where 16 bits blur distant positions.
            q, k, v = (x.to(mask.dtype) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and queries > 1,
    )
    return out.transpose(1, 2).to(dtype)


def _bmm_batch(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
    """`_sdpa_batch`, with the faster backward pass where there is one."""
    if slopes is None and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return attend_by_bmm(q, k, v)
    return _sdpa_batch(q, k, v, slopes)


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [queries, keys]: may this query see this key."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return seen.tril(keys - queries)


def alibi_bias(
    slopes: Tensor, queries: int, keys: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """slope · (key position - query position), and -inf in the future: [H, queries, keys]."""
    key = torch.arange(keys, device=device, dtype=dtype)
    query = torch.arange(keys - queries, keys, device=device, dtype=dtype)
    distance = key[None, :] - query[:, None]
    distance.masked_fill_(distance > 0, -math.inf)
    return slopes.to(device, dtype)[:, None, None] * distance


# ---------------------------------------------------------------------- varlen and flash

#: cu_seqlens of queries and of keys, max_seqlen of queries and of keys.
Seqlens = tuple[Tensor, Tensor, int, int]


def _varlen(q: Tensor, k: Tensor, v: Tensor, seqlens: Seqlens, slopes: Tensor | None) -> Tensor:
    if slopes is not None:
        raise UsageError(
            "attention backend 'varlen' has no ALiBi", todo="use 'auto', 'flash' or 'sdpa'"
        )
    # A window of (all, 0) is causal, aligned to the last key as a cache needs it.
    out: Tensor = _load_varlen()(q, k, v, *seqlens, window_size=(-1, 0))
    return out


def _flash(q: Tensor, k: Tensor, v: Tensor, seqlens: Seqlens, slopes: Tensor | None) -> Tensor:
    if slopes is not None:
        slopes = slopes.to(q.device, torch.float32)
    out: Tensor = _load_flash()(q, k, v, *seqlens, causal=True, alibi_slopes=slopes)
    return out


def _load_varlen() -> Callable[..., Any]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise UsageError(
            "this torch has no torch.nn.attention.varlen", todo="use 'auto' or 'sdpa'"
        ) from None
    return varlen_attn


def _load_flash() -> Callable[..., Any]:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        raise UsageError(
            "attention backend 'flash' needs the flash-attn package",
            todo="pip install 'bc2[cuda]', or use 'auto' or 'sdpa'",
        ) from None
    found: Callable[..., Any] = flash_attn_varlen_func
    return found
