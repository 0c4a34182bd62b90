"""Causal attention over packed documents, with a choice of kernels.

Shapes:
    T  tokens of all documents, one after another
    H  heads          K  channels of a head          N  documents

`cu_seqlens` [N+1] holds the boundaries: document n is tokens cu_seqlens[n] to
cu_seqlens[n+1]. No token attends across a boundary. Attention to the keys of earlier
tokens in a cache is that of `bc2.generate.cache.paged_attention`.

Backends:
    sdpa    torch's scaled_dot_product_attention; runs everywhere.
    bmm     sdpa with a compiled backward pass, on a CPU without ALiBi.
    varlen  torch.nn.attention.varlen (CUDA, 16 bits, no ALiBi).
    flash   the flash-attn package (CUDA, 16 bits, ALiBi inside the kernel).

Tests check the arguments that the last two are called with; they have not run on a GPU yet.
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

#: For sdpa, documents are padded to a multiple of this many tokens.
PAD_TO = 64


def alibi_slopes(num_heads: int) -> Tensor:
    """ALiBi's slope of each head, in the order of the released 13B model.

    If the number of heads is a power of two, the slopes are the geometric series of the ALiBi
    paper (arXiv 2108.12409). Otherwise they are the series of the power of two below, then every
    second slope of the power of two above: 40 heads have 2^-0.25 ... 2^-8 and then 2^-0.125,
    2^-0.375 ... 2^-1.875.

    Returns:
        fp32 [H], positive.
    """
    below = 2 ** int(math.log2(num_heads))
    exponents = [8 * (h + 1) / below for h in range(below)]
    exponents += [4 * (2 * h + 1) / below for h in range(num_heads - below)]
    return torch.tensor([2.0**-e for e in exponents], dtype=torch.float32)


# The boundaries of documents are data: torch would specialise a compiled graph on them and
# compile again for every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(q kᵀ / √K + ALiBi) v within each document, with a causal mask.

    Args:
        q, k, v: [T, H, K].
        cu_seqlens: int32 [N+1], boundaries of the documents.
        max_seqlen: tokens of the longest document.
        slopes: fp32 [H] for ALiBi: adds slope · (key position - query position).
        backend: the kernel; "auto" is the one that `choose_backend` chooses.

    Returns:
        [T, H, K] in q's dtype.

    Raises:
        UsageError: a backend was named that cannot run here.
        ValueError: the boundaries do not fit the tensors. Only sdpa and bmm check this, because
            the other backends do not read the boundaries on the host.
    """
    chosen = choose_backend(q, slopes) if backend == "auto" else backend
    if chosen in ("sdpa", "bmm"):
        kernel = _bmm_batch if chosen == "bmm" else _sdpa_batch
        return _sdpa_packed(q, k, v, tuple(_lengths(cu_seqlens, q)), slopes, kernel)
    seqlens = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    if chosen == "flash":
        return _flash(q, k, v, seqlens, slopes)
    return _varlen(q, k, v, seqlens, slopes)


def choose_backend(q: Tensor, slopes: Tensor | None) -> Backend:
    """The fastest backend that is installed and can compute with these tensors.

    Args:
        q: [T, H, K]; its device and dtype decide.
        slopes: ALiBi's, or None.
    """
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
    """Each document's length, as integers on the host; waits for the device of `cu_seqlens`."""
    ends = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != x.shape[0] or any(n < 0 for n in lengths):
        raise ValueError(f"cu_seqlens {ends} does not divide {x.shape[0]} tokens")
    return lengths


# ------------------------------------------------------------------------------- sdpa

#: A kernel for documents of one length: q, k and v [B, S, H, K], and ALiBi's slopes ->
#: [B, S, H, K].
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _sdpa_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    slopes: Tensor | None,
    kernel: Kernel,
) -> Tensor:
    """Attention over documents of any lengths, in one batch for each padded length.

    The padding comes after all tokens of a document, so no token attends to it, and its results
    are dropped. Lengths are rounded up to a multiple of PAD_TO so that there are few shapes:
    kernels are cached by shape.
    """
    if lengths and lengths[0] % PAD_TO == 0 and len(set(lengths)) == 1:
        q, k, v = (x.view(len(lengths), lengths[0], *x.shape[1:]) for x in (q, k, v))
        return kernel(q, k, v, slopes).flatten(0, 1)
    slots, groups = padded_slots(lengths)
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
def padded_slots(lengths: tuple[int, ...]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Where tokens go when documents are sorted by rounded length and padded to it.

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
    with torch.inference_mode(False):  # training may use the cached tensor later
        where = torch.from_numpy(slots)
    return where, list(zip(counts.tolist(), values.tolist(), strict=True))


class _Take(torch.autograd.Function):
    """x[rows] for distinct rows, so that the gradient is a copy and not a sum."""

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
    """Attention over a batch of documents of one length: [B, S, H, K] -> [B, S, H, K]."""
    length, dtype = q.shape[1], q.dtype
    mask = None
    if slopes is not None:
        mask = alibi_bias(slopes, length, q.device, torch.promote_types(dtype, slopes.dtype))
        if q.device.type != "cpu":
            # Other devices require the bias in q's dtype, and 16 bits cannot tell distant
            # positions apart.
            q, k, v = (x.to(mask.dtype) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and length > 1,
    )
    return out.transpose(1, 2).to(dtype)


def _bmm_batch(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
    """`_sdpa_batch`, with the faster backward pass of `attend_by_bmm` where it applies."""
    if slopes is None and q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float32):
        return attend_by_bmm(q, k, v)
    return _sdpa_batch(q, k, v, slopes)


def alibi_bias(slopes: Tensor, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """slope · (key position - query position), and -inf for later keys: [H, length, length]."""
    place = torch.arange(length, device=device, dtype=dtype)
    distance = place[None, :] - place[:, None]
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
    # A window of all earlier keys and no later ones is a causal mask.
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
