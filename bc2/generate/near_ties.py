"""Settle near ties, so that greedy output depends on the prompt alone.

The results of matrix kernels differ in their last bits with the shape of a batch and with the
cache. This changes greedy output only where the difference of the two largest logits is as small
as that. There, one canonical pass decides: the sequence alone, without a cache, in the next wider
dtype. Of equal logits the lowest id wins.

Shapes:
    T  tokens      D  hidden size      V  vocabulary      B  sequences
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bc2.model.transformer import Positions, Transformer, normalize_rows

#: How far the results of two kernels may differ, in roundings, by bytes of the dtype. 16-bit
#: kernels sum in fp32 and round only what they store. Kernels of wider dtypes differ in their
#: sums too, but there a large tolerance costs nothing. tests/generate/test_near_ties.py measures
#: the difference.
ROUNDINGS = {2: 6.0, 4: 512.0, 8: 512.0}


def tolerance(model: Transformer, hidden: Tensor, longest_row: float, top: Tensor) -> Tensor:
    """The largest difference of two logits whose order another batch shape could reverse: [B].

    It is roundings · ε · (√(2L) · rms(hidden) · longest row of the head + |largest logit|). Each
    of the 2L sublayers rounds the residual stream to ε, the errors add up as in a random walk,
    and the product with a row of the head carries them into a logit. This is an estimate for
    ordinary weights and no bound for adversarial ones.

    Args:
        hidden: [B, D], in the model's dtype.
        longest_row: the largest L2 norm of the head's rows.
        top: [B], the largest logits.
    """
    epsilon = torch.finfo(hidden.dtype).eps
    sublayers = 2 * model.config.num_layers
    rms = hidden.double().square().mean(dim=-1).sqrt()
    scale: Tensor = sublayers**0.5 * rms * longest_row + top.double().abs()
    return ROUNDINGS[hidden.dtype.itemsize] * epsilon * scale


def settle(model: Transformer, tokens: Tensor, candidates: list[int]) -> int:
    """The candidate with the largest logit after `tokens`, by the canonical pass.

    Args:
        tokens: the whole sequence so far, int64 [T].
        candidates: ids within the tolerance of the largest, ascending.
    """
    if len(candidates) == 1:
        return candidates[0]
    hidden = canonical_hidden(model, tokens)
    best, chosen = -float("inf"), candidates[0]
    for token in candidates:
        row = model.lm_head.weight[token : token + 1].to(hidden.dtype)
        if model.config.norm_head:
            row = normalize_rows(row)
        # One row at a time: its logit must not depend on which others are candidates.
        logit = torch.dot(row[0], hidden).item()
        if logit > best:
            best, chosen = logit, token
    return chosen


def canonical_hidden(model: Transformer, tokens: Tensor) -> Tensor:
    """The last hidden state [D] in fp64 (fp32 for 16-bit models), one layer at a time.

    Each layer's weights are converted to the wider dtype just before the layer runs, so the
    extra memory is that of a layer and not of a model.
    """
    wide = wider(model.lm_head.weight.dtype)
    cu_seqlens = torch.tensor([0, len(tokens)], dtype=torch.int32, device=tokens.device)
    positions = torch.arange(len(tokens), device=tokens.device)
    at = Positions(model.config, positions, cu_seqlens, len(tokens))
    x: Tensor = model.model.embed_tokens(tokens).to(wide)
    for index, layer in enumerate(model.model.layers):
        x = _widened(layer, wide, x, at, None, index)
    return _widened(model.model.norm, wide, x[-1:])[0]


def wider(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the canonical pass of a model in `dtype`."""
    return torch.float32 if dtype.itemsize == 2 else torch.float64


def _widened(module: nn.Module, dtype: torch.dtype, *args: Any) -> Tensor:
    """module(*args) with the weights in `dtype`; the module itself does not change."""
    weights = {name: weight.to(dtype) for name, weight in module.named_parameters()}
    out: Tensor = functional_call(module, weights, args)
    return out
