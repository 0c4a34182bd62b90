"""Rotary position embedding (arXiv 2104.09864), and its wavelengths for longer texts.

Shapes:
    T  tokens      H  heads      K  channels of a head
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bc2.model.head_weight import at_least_fp32

if TYPE_CHECKING:
    from bc2.model.rope_scaling import RopeScaling


def rotary_table(
    positions: Tensor, head_dim: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles for `rotate`, in fp32: each [T, 1, K].

    In 16 bits, neighbouring positions above 256 would have the same angle.

    Args:
        positions: int64 [T].
        head_dim: K.
        base: `ModelConfig.rope_base`.
        scaling: `ModelConfig.rope_scaling`.
    """
    frequency = frequencies(head_dim, base, scaling, positions.device)
    return table_of_angles(positions.float()[:, None] * frequency, scaling)


def frequencies(
    head_dim: int, base: float, scaling: RopeScaling | None, device: torch.device | None = None
) -> Tensor:
    """Radians that each pair of channels turns by from one token to the next: fp32 [K/2]."""
    channel = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    period = base ** (channel / head_dim)
    return 1.0 / period if scaling is None else _scaled(period, head_dim, base, scaling)


def table_of_angles(angle: Tensor, scaling: RopeScaling | None) -> tuple[Tensor, Tensor]:
    """cos and sin for `rotate` of the angles [T, K/2] of each token: each [T, 1, K]."""
    cos, sin = angle.cos(), angle.sin()
    if scaling is not None and scaling.kind == "yarn":
        factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
        cos, sin = cos * factor, sin * factor
    return (
        torch.cat((cos, cos), dim=-1)[:, None, :],
        torch.cat((-sin, sin), dim=-1)[:, None, :],
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) of [T, H, K], computed in fp32 or wider.

    Channel k is paired with channel k + K/2, as in GPT-NeoX.
    """
    wide = x.to(at_least_fp32(x.dtype))
    # flip instead of chunk and cat: its backward pass is several times faster on a CPU.
    halves = wide.view(*wide.shape[:-1], 2, wide.shape[-1] // 2)
    swapped = halves.flip(-2).flatten(-2)
    return (wide * cos + swapped * sin).to(x.dtype)


def _scaled(period: Tensor, head_dim: int, base: float, scaling: RopeScaling) -> Tensor:
    """The frequency of each pair of channels: 1 / period, or that less often, or between."""
    plain = 1.0 / period
    if scaling.kind == "linear":
        return plain / scaling.factor
    length = scaling.original_context
    assert length is not None
    if scaling.kind == "llama3":
        return _llama3(plain, length, scaling)
    return _yarn(period, length, head_dim, base, scaling)


def _llama3(plain: Tensor, length: int, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's: between the two wavelengths, in proportion to the turns in `length` tokens."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / plain
    kept = (length / wavelength - low) / (high - low)
    between = (1 - kept) * plain / scaling.factor + kept * plain
    scaled = torch.where(wavelength > length / low, plain / scaling.factor, between)
    return torch.where(wavelength < length / high, plain, scaled)


def _yarn(period: Tensor, length: int, head_dim: int, base: float, scaling: RopeScaling) -> Tensor:
    """YaRN's (arXiv 2309.00071, section 3.2): between the two, in proportion to the channel."""

    def pair_of(turns: float) -> float:
        """The pair of channels that turns so often in `length` tokens."""
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_of(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_of(scaling.beta_slow)), head_dim - 1)
    pair = torch.arange(head_dim // 2, dtype=torch.float32, device=period.device)
    # As everywhere: a ramp of no length would divide by zero.
    kept = 1 - ((pair - low) / (high - low or 0.001)).clamp(0, 1)
    return 1.0 / (scaling.factor * period) * (1 - kept) + 1.0 / period * kept
