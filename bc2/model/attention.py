"""Causal attention over packed documents, with a choice of kernels.

Shapes:
    T  tokens of all documents, one after another
    H  heads          K  channels of a head          N  documents
    G  heads of keys and values, each read by H / G heads of queries

`cu_seqlens` [N+1] holds the boundaries: document n is tokens cu_seqlens[n] to
cu_seqlens[n+1]. No token attends across a boundary. Attention to the keys of earlier
tokens in a cache is that of `bc2.generate.cache.paged_attention`.

Backends:
    sdpa    torch's scaled_dot_product_attention; runs everywhere.
    bmm     sdpa with a compiled backward pass, on a CPU without ALiBi.
    varlen  torch.nn.attention.varlen (CUDA, 16 bits).
    flash   the flash-attn package (CUDA, 16 bits, ALiBi inside the kernel).

But for flash, ALiBi comes in a few more channels: see `bc2.model.alibi_channels`. Tests check
what the last two, and sdpa on a GPU, are called with; they have not run on a GPU yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bc2.model import cuda_kernels
from bc2.model.alibi_channels import AlibiChannels, alibi_channels
from bc2.model.attention_sizes import ALIBI_CHANNELS, PAD_TO
from bc2.model.cpu_kernels import attend_by_bmm

Backend = Literal["auto", "sdpa", "bmm", "varlen", "flash"]


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


def document_positions(cu_seqlens: Tensor, total: int, start: Tensor | None = None) -> Tensor:
    """Each token's position in its document: int64 [T].

    Args:
        cu_seqlens: int32 [N+1].
        total: T; to read it from cu_seqlens would wait for the device.
        start: [N], the number of tokens of each document that a cache already holds.
    """
    first = cu_seqlens[:-1].long()
    shift = first if start is None else first - start
    lengths = cu_seqlens.diff().long()
    spread = torch.repeat_interleave(shift, lengths, output_size=total)
    return torch.arange(total, device=cu_seqlens.device) - spread


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None = None,
    backend: Backend = "auto",
    window: int | None = None,
) -> Tensor:
    """softmax(q kᵀ / √K + ALiBi) v within each document, with a causal mask.

    Args:
        q: [T, H, K].
        k, v: [T, G, K]; query head h reads key head h // (H / G).
        cu_seqlens: int32 [N+1], boundaries of the documents.
        max_seqlen: tokens of the longest document.
        slopes: fp32 [H] for ALiBi: adds slope · (key position - query position).
        backend: the kernel; "auto" is the one that `choose_backend` chooses.
        window: see `Documents`.

    Returns:
        [T, H, K] in q's dtype.

    Raises:
        UsageError: a backend was named that cannot run here.
        ValueError: the boundaries do not fit the tensors. Only what reads the boundaries on the
            host checks this: sdpa and bmm, but for documents of one length on a GPU.
    """
    positions = None if slopes is None else document_positions(cu_seqlens, len(q))
    documents = Documents(cu_seqlens, max_seqlen, positions, slopes, window)
    out: Tensor = documents.attend(q, k, v, backend=backend)
    return out


class Documents:
    """Documents one after another, and what attention to each other's tokens needs of them.

    All layers of a forward pass share one, so that what is made of boundaries and positions is
    made once.

    Args:
        cu_seqlens: int32 [N+1].
        max_seqlen: tokens of the longest document.
        positions: int64 [T], of each token in its document; only ALiBi needs them.
        slopes: ALiBi's of all heads, fp32; None without ALiBi.
        window: how many tokens each attends to, the last of them itself; None: all before it too.
            Not with ALiBi.
    """

    def __init__(
        self,
        cu_seqlens: Tensor,
        max_seqlen: int,
        positions: Tensor | None = None,
        slopes: Tensor | None = None,
        window: int | None = None,
    ):
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen
        self.positions = positions
        self.slopes = slopes
        #: None too where no document is longer.
        self.window = window if window is not None and window < max_seqlen else None
        self._lengths: tuple[int, ...] | None = None
        self._channels: AlibiChannels | None = None

    # Not compiled: boundaries are data, and torch would specialise a graph on them and compile
    # again for other documents. Compiled layers do not look into this object either.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: slice = slice(None),
        backend: Backend = "auto",
    ) -> Tensor:
        """`bc2.model.attention.attend`; `heads` are those of q, k and v."""
        slopes = None if self.slopes is None else self.slopes[heads]
        if backend == "auto":
            # The kernel for one length knows no window.
            one_length = self._have_one_length(len(q)) and self.window is None
            backend = choose_backend(q, slopes, one_length=one_length)
        seqlens = (self.cu_seqlens, self.cu_seqlens, self.max_seqlen, self.max_seqlen)
        if backend == "flash":
            return cuda_kernels.flash(q, k, v, seqlens, slopes, self.window)
        # The other kernels do not all take fewer key heads, so each gets a copy for each query
        # head.
        k, v = (each_for(x, q.shape[1]) for x in (k, v))
        scale, size, dtype = None, q.shape[-1], q.dtype
        if slopes is not None:
            if q.device.type == "cpu":
                # The kernel for 16 bits rounds probabilities to them, and is not much faster.
                q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
            channels = self._alibi_channels(q)
            q, k, v = channels.join(q, k, v, heads)
            scale = channels.scale
        if backend == "varlen":
            out = cuda_kernels.varlen(q, k, v, seqlens, scale, self.window)
        else:
            kernel: Kernel = _bmm_batch if backend == "bmm" else _sdpa_batch
            if self.window is not None:
                kernel = partial(_windowed_batch, self.window, kernel)
            out = _sdpa_packed(q, k, v, self._lengths_of(len(q)), kernel, scale)
        return out if slopes is None else out[..., :size].to(dtype)

    def _have_one_length(self, total: int) -> bool:
        """Whether all documents have one length, and kernels for it are worth making."""
        return self._fill(total) and self.max_seqlen % PAD_TO == 0

    def _fill(self, total: int) -> bool:
        """Whether all documents are as long as the longest; waits for no device."""
        return (len(self.cu_seqlens) - 1) * self.max_seqlen == total

    def _lengths_of(self, total: int) -> tuple[int, ...]:
        """Each document's length, as integers on the host.

        Waits for the device of `cu_seqlens`, unless all lengths are the same.
        """
        if self._lengths is None:
            if self.cu_seqlens.device.type == "cuda" and self._fill(total):
                self._lengths = (self.max_seqlen,) * (len(self.cu_seqlens) - 1)
            else:
                self._lengths = _read_lengths(self.cu_seqlens, total)
        return self._lengths

    def _alibi_channels(self, q: Tensor) -> AlibiChannels:
        if self._channels is None:
            assert self.slopes is not None
            assert self.positions is not None
            self._channels = alibi_channels(self.slopes, self.positions, q.shape[-1], q.dtype)
        return self._channels


def each_for(x: Tensor, heads: int) -> Tensor:
    """Keys or values, with those of a head once for each query head that reads it.

    Args:
        x: [T, G, K].
        heads: H.

    Returns:
        [T, H, K]; x itself if G is H.
    """
    share = heads // x.shape[1]
    return x if share == 1 else x.repeat_interleave(share, dim=1)


def choose_backend(q: Tensor, slopes: Tensor | None, *, one_length: bool = False) -> Backend:
    """The fastest backend that is installed and can compute with these tensors.

    On a GPU in 16 bits: sdpa for documents of one length, since it has cuDNN's kernel, and else
    varlen. For ALiBi flash-attn's kernel is before both, which needs no further channels.

    Args:
        q: [T, H, K]; its device, dtype and K decide.
        slopes: ALiBi's, or None.
        one_length: whether all documents have one length.
    """
    if not _has_fused_kernels(q):
        return "sdpa"
    channels = q.shape[-1] + (0 if slopes is None else ALIBI_CHANNELS)
    cuda_kernels.use_newest_flash(torch.cuda.get_device_capability(q.device), channels)
    if slopes is not None and cuda_kernels.flash_function() is not None:
        return "flash"
    if one_length or not cuda_kernels.fits_flash(channels):
        return "sdpa"
    if cuda_kernels.varlen_function() is not None:
        return "varlen"
    return "sdpa" if cuda_kernels.flash_function() is None else "flash"


def _has_fused_kernels(q: Tensor) -> bool:
    """Whether q is of 16 bits on a GPU whose capability is 8 or more."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(q.device)[0] >= 8


def _read_lengths(cu_seqlens: Tensor, total: int) -> tuple[int, ...]:
    ends = cu_seqlens.tolist()
    lengths = tuple(end - start for start, end in pairwise(ends))
    if ends[0] != 0 or ends[-1] != total or any(n < 0 for n in lengths):
        raise ValueError(f"cu_seqlens {ends} does not divide {total} tokens")
    return lengths


# ------------------------------------------------------------------------------- sdpa

#: A kernel for documents of one length: q, k and v [B, S, H, K], and the scale of the scores or
#: None for 1 / √K -> [B, S, H, K].
Kernel = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]


def _sdpa_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    kernel: Kernel,
    scale: float | None,
) -> Tensor:
    """Attention over documents of any lengths, in one batch for each padded length.

    The padding comes after all tokens of a document, so no token attends to it, and its results
    are dropped. Lengths are rounded up to a multiple of PAD_TO so that there are few shapes:
    kernels are cached by shape.
    """
    if lengths and lengths[0] % PAD_TO == 0 and len(set(lengths)) == 1:
        q, k, v = (x.view(len(lengths), lengths[0], *x.shape[1:]) for x in (q, k, v))
        return kernel(q, k, v, scale).flatten(0, 1)
    slots, groups = padded_slots(lengths)
    slots = slots.to(q.device, non_blocking=True)
    rows = sum(count * length for count, length in groups)
    q, k, v = (x.new_zeros(rows, *x.shape[1:]).index_copy(0, slots, x) for x in (q, k, v))
    done = []
    start = 0
    for count, length in groups:
        span, shape = slice(start, start + count * length), (count, length, *q.shape[1:])
        batch = kernel(q[span].view(shape), k[span].view(shape), v[span].view(shape), scale)
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


def _sdpa_batch(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Attention over a batch of documents of one length: [B, S, H, K] -> [B, S, H, K]."""
    if _has_fused_kernels(q):
        return cuda_kernels.attend_dense(q, k, v, scale)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=q.shape[1] > 1,
        scale=scale,
    )
    return out.transpose(1, 2)


def _bmm_batch(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """`_sdpa_batch`, with the faster backward pass of `attend_by_bmm` where it applies."""
    if scale is None and q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float32):
        return attend_by_bmm(q, k, v)
    return _sdpa_batch(q, k, v, scale)


def _windowed_batch(
    window: int, plain: Kernel, q: Tensor, k: Tensor, v: Tensor, scale: float | None
) -> Tensor:
    """Attention of each token to a window; documents no longer than it have the plain kernel."""
    if q.shape[1] <= window:
        return plain(q, k, v, scale)
    # All layers have one mask, of the type that kernels add.
    mask = window_mask(q.shape[1], window, q.dtype, q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2)


@lru_cache(maxsize=8)
def window_mask(length: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to scores [S, S]: 0 for the last `window` keys up to a query, else -inf."""
    with torch.inference_mode(False):  # training may use the cached tensor later
        place = torch.arange(length, device=device)
        distance = place[:, None] - place
        hidden = (distance < 0) | (distance >= window)
        return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(
            hidden, -torch.inf
        )
