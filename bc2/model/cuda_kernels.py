"""Attention's fused kernels for GPUs: which are installed, and how each is called.

Shapes:
    T  tokens of all documents      B  documents of one length      S  its tokens
    H  heads      K  channels of a head

All of these take 16 bits on a GPU of compute capability 8 or more. torch's own FlashAttention is
version 2. Where FlashAttention 3 (flash_attn_interface, for Hopper) or 4 (flash_attn.cute) is
installed, `use_newest_flash` has torch call that instead, in `varlen` and in dense attention.

Deterministic algorithms: cuDNN's backward pass has none in torch, so it is left out. torch's
kernels, also versions 3 and 4, look at torch's setting themselves; flash-attn is told.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.attention
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bc2.errors import UsageError

#: cu_seqlens of queries and of keys, max_seqlen of queries and of keys.
Seqlens = tuple[Tensor, Tensor, int, int]

#: The most channels of a head, by the version of FlashAttention that torch calls.
_MOST_CHANNELS = {"FA4": 128}
_USUAL_MOST = 256

#: GPUs on which cuDNN's attention is the fastest.
_CUDNN_CAPABILITIES = ((9, 0), (10, 0), (10, 3))
#: Up to this version cuDNN needs lengths that are multiples of 128 (pytorch issue 169849).
_CUDNN_ANY_LENGTH = 91500


def fits_flash(channels: int) -> bool:
    """Whether the FlashAttention that torch calls takes heads of so many channels."""
    most = _MOST_CHANNELS.get(_current_flash() or "", _USUAL_MOST)
    return channels % 8 == 0 and channels <= most


@cache
def use_newest_flash(capability: tuple[int, int], channels: int) -> None:
    """Have torch call FlashAttention 3 or 4 from now on, if one is installed that fits.

    One that is active already stays: that was someone's choice, or the gradient of what it
    computed is still to come.

    Args:
        capability: the GPU's compute capability.
        channels: of a head.
    """
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None or _current_flash() is not None:
        return
    versions = {9: ("FA3", "FA4"), 10: ("FA4",)}.get(capability[0], ())
    for version in versions:
        if channels > _MOST_CHANNELS.get(version, _USUAL_MOST):
            continue
        try:
            activate(version)
        except (ImportError, RuntimeError, ValueError):
            # Not installed; a package of that name without these kernels; not in this torch.
            continue
        return


def _current_flash() -> str | None:
    """The version of FlashAttention that torch calls; None for its own."""
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    found: str | None = None if current is None else current()
    return found


def attend_dense(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Causal attention over documents of one length: [B, S, H, K] -> [B, S, H, K].

    Args:
        scale: of the scores; None: 1 / √K.
    """
    with sdpa_kernel(_dense_order(q), set_priority=True):
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=q.shape[1] > 1,
            scale=scale,
        )
    return out.transpose(1, 2)


def _dense_order(q: Tensor) -> list[SDPBackend]:
    """The kernels to try, the fastest first; torch skips those that cannot take the tensors.

    torch's own order has had cuDNN first, last, and by an environment variable.
    """
    order = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if fits_flash(-(-q.shape[-1] // 8) * 8):  # torch pads channels to a multiple of 8
        order.insert(0, SDPBackend.FLASH_ATTENTION)
    version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if (
        version is not None
        and (version > _CUDNN_ANY_LENGTH or q.shape[1] % 128 == 0)
        and torch.cuda.get_device_capability(q.device) in _CUDNN_CAPABILITIES
        and not torch.are_deterministic_algorithms_enabled()
    ):
        order.insert(0, SDPBackend.CUDNN_ATTENTION)
    return order


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seqlens: Seqlens,
    scale: float | None,
    window: int | None = None,
) -> Tensor:
    """Causal attention within each document, by torch: [T, H, K] -> [T, H, K].

    Args:
        scale: of the scores; None: 1 / √K.
        window: see `bc2.model.attention.Documents`.

    Raises:
        UsageError: this torch has no such kernel, or none for the tensors' device.
    """
    kernel = varlen_function()
    if kernel is None:
        raise UsageError("this torch has no torch.nn.attention.varlen", todo="use 'auto' or 'sdpa'")
    options = {} if scale is None else {"scale": scale}
    try:
        # A window of all earlier keys and no later ones is a causal mask.
        size = (-1 if window is None else window - 1, 0)
        out: Tensor = kernel(q, k, v, *seqlens, window_size=size, **options)
    except NotImplementedError:
        raise UsageError(
            f"attention backend 'varlen' does not run on {q.device}", todo="use 'auto' or 'sdpa'"
        ) from None
    return out


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seqlens: Seqlens,
    slopes: Tensor | None,
    window: int | None = None,
) -> Tensor:
    """Causal attention within each document, by flash-attn: [T, H, K] -> [T, H, K].

    Args:
        k, v: [T, G, K], where G divides H.
        slopes: ALiBi's, [H], or None.
        window: see `bc2.model.attention.Documents`.

    Raises:
        UsageError: flash-attn's function cannot be imported.
    """
    kernel = flash_function()
    if kernel is None:
        raise UsageError(
            "attention backend 'flash' needs flash_attn_varlen_func of the flash-attn package, "
            "which cannot be imported here",
            todo="pip install 'bc2[cuda]', or use 'auto' or 'sdpa'",
        )
    if slopes is not None:
        slopes = slopes.to(q.device, torch.float32)
    out: Tensor = kernel(
        q,
        k,
        v,
        *seqlens,
        causal=True,
        alibi_slopes=slopes,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        **({} if window is None else {"window_size": (window - 1, 0)}),
    )
    return out


@cache
def varlen_function() -> Callable[..., Any] | None:
    """torch's `varlen_attn`, or None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Callable[..., Any] = varlen_attn
    return found


@cache
def flash_function() -> Callable[..., Any] | None:
    """flash-attn's `flash_attn_varlen_func`, or None.

    It is imported, because FlashAttention 4 and others install a `flash_attn` without it.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    found: Callable[..., Any] = flash_attn_varlen_func
    return found
