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
    """The distribution to draw from: logits [B, V] -> probabilities [B, V], fp64.

    Args:
        temperature: above 0; divides the logits.
        top_k: see `keep_top_k`; 0 keeps all tokens.
        top_p: see `keep_top_p`; 1 keeps all tokens.
    """
    # The maximum is subtracted first, so that even the smallest temperature does not overflow.
    logits = logits.double()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    logits = keep_top_k(logits, top_k)
    return keep_top_p(logits.softmax(dim=-1), top_p)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set logits [B, V] below the k-th largest of their row to -inf; k = 0 keeps all.

    Logits equal to the k-th largest stay.
    """
    if k == 0 or k >= logits.shape[-1]:
        return logits
    kth = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Nucleus sampling (arXiv 1904.09751): probabilities [B, V] -> [B, V].

    The fewest likeliest tokens whose probabilities reach p together are kept, and scaled to sum
    to 1.
    """
    if p >= 1.0:
        return probabilities
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, ids, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def draw_ids(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token for each row by inverting the cumulative distribution over ids.

    Each draw takes one random number, and tokens are in the order of ids, so a difference in the
    last bits of a probability almost never changes a draw.

    Args:
        probabilities: [B, V].
        uniform: random numbers [B] in [0, 1).

    Returns:
        int64 [B].
    """
    total = probabilities.cumsum(dim=-1)
    # Scaled by the sum, because rounding may leave the sum a little off 1.
    ids = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)[:, 0]
    # Rounding could give an id after the last token whose probability is above 0.
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
    """The random generator of prompt `index`, on the CPU.

    Its seed is a hash of `seed` and `index`, because neighbouring seeds need not give independent
    numbers.
    """
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
