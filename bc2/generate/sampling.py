"""Choosing a token from logits, as pure functions.

Shapes:
    B  sequences      V  vocabulary
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bc2.generate.sampling_config import SamplingConfig


def warp(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """The distribution to draw from: [B, V] -> probabilities [B, V], fp64.

    Args:
        temperature: positive.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
    """
    # From the maximum down, so that no temperature however small overflows.
    logits = logits.double()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    logits = keep_top_k(logits, top_k)
    return keep_top_p(logits.softmax(dim=-1), top_p)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """-inf for all below the k-th largest logit of a row; ties with it stay. 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    kth = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """The nucleus: the fewest likeliest tokens that reach p, scaled to sum to 1."""
    if p >= 1.0:
        return probabilities
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, ids, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def draw_ids(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution: [B, V] and [B] in [0, 1) -> ids int64 [B].

    One number a token, in the order of ids, so that a last-bit difference in a
    probability almost never changes a draw.
    """
    total = probabilities.cumsum(dim=-1)
    # Relative to the sum itself, which rounding may leave a little off 1.
    ids = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)[:, 0]
    # At the very end of the line rounding could point past the last token with a share.
    last = (probabilities > 0).long() * torch.arange(
        1, probabilities.shape[1] + 1, device=ids.device
    )
    return torch.minimum(ids, last.amax(dim=-1) - 1)


def sample(
    logits: Tensor, settings: SamplingConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """Draw one token for each row with its own generator: [B, V] -> ids int64 [B]."""
    probabilities = warp(logits, settings.temperature, settings.top_k, settings.top_p)
    uniform = [torch.rand((), dtype=torch.float64, generator=g) for g in generators]
    return draw_ids(probabilities, torch.stack(uniform).to(logits.device))


def prompt_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of prompt `index` alone, on the CPU.

    Hashed, since neighbouring seeds of a generator are not independent by design.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
