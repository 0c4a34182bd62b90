"""The loss of each token from its logits, and the gradient of the logits in their place.

Shapes:
    C  tokens of a chunk      V  vocabulary, or this rank's part of it

The loss is CE + z_weight · z², where z is the largest logit (Baichuan 2, equation 1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from bc2.model.softmax import (
    VocabularyShard,
    add_at_,
    own_columns,
    row_blocks,
    row_max,
    scratch,
    softmax_sums,
)


def token_losses_(
    logits: Tensor,
    labels: Tensor,
    ce: Tensor,
    z: Tensor,
    z_weight: float,
    shard: VocabularyShard | None = None,
) -> None:
    """Turn logits [C, V] into the gradient of the summed loss, and fill `ce` and `z` [C].

    Args:
        labels: int64 [C], all in the vocabulary.
        ce, z: fp32 or wider; softmax is computed in their dtype.
        shard: describes the columns, if each rank has some of them.
    """
    if shard is None:
        _by_blocks_(logits, labels, ce, z, z_weight)
    else:
        _sharded_(logits, labels, ce, z, z_weight, shard)


def compiled_token_losses_(
    logits: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float
) -> None:
    """`token_losses_` as one compiled function, for a GPU; a label may be negative.

    A token with a negative label has 0 in `ce` and `z`, and no gradient.
    """
    _compiled()(logits, labels, ce, z, z_weight)


@cache
def _compiled() -> Callable[..., None]:
    # The number of tokens may become dynamic: only the last chunk of a batch has another one.
    return torch.compile(_in_one_pass_)


def _in_one_pass_(logits: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float) -> None:
    known, label = (labels >= 0)[:, None], labels[:, None].clamp(min=0)
    x = logits.to(ce.dtype)
    top_logit, top = x.max(dim=-1, keepdim=True)
    exp = (x - top_logit).exp()
    sum_exp = exp.sum(dim=-1, keepdim=True)
    losses = top_logit + sum_exp.log() - x.gather(1, label)
    ce.copy_(torch.where(known, losses, 0.0)[:, 0])
    z.copy_(torch.where(known, top_logit, 0.0)[:, 0])
    # Compared, not scattered: so all of it is one pass over the logits.
    column = torch.arange(x.shape[1], device=x.device)
    gradient = exp / sum_exp - (column == label).to(x.dtype)
    gradient = gradient + torch.where(column == top, 2 * z_weight * top_logit, 0.0)
    logits.copy_(torch.where(known, gradient, 0.0))


def _by_blocks_(logits: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float) -> None:
    same = logits.dtype == ce.dtype
    p = scratch(logits, ce.dtype)
    wide = p if same else torch.empty_like(p)
    for block in row_blocks(logits, ce.dtype):
        count = block.stop - block.start
        x = logits[block] if same else wide[:count].copy_(logits[block])
        probability = p[:count]
        top_logit, top = row_max(x)
        label = labels[block, None]
        label_logit = x.gather(1, label)
        torch.softmax(x, dim=-1, out=probability)
        # log Σ exp = z - log p(z): softmax has computed the sum, and this recovers it.
        torch.sub(top_logit - probability.gather(1, top).log(), label_logit, out=ce[block, None])
        z[block, None] = top_logit
        add_at_(probability, label, torch.full_like(label_logit, -1.0))
        add_at_(probability, top, 2 * z_weight * top_logit)
        logits[block] = probability


def _sharded_(
    logits: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float, shard: VocabularyShard
) -> None:
    sums = softmax_sums(logits, labels, ce.dtype, shard)
    z.copy_(sums.top_logit)
    torch.sub(z + sums.sum_exp.log(), sums.label_logit, out=ce)
    columns = logits.shape[1]
    label, has_label = own_columns(labels, columns, shard)
    top, has_top = own_columns(sums.top_id, columns, shard)
    for block in row_blocks(logits, ce.dtype):
        p = logits[block].to(ce.dtype).sub_(z[block, None]).exp_().div_(sums.sum_exp[block, None])
        add_at_(p, label[block], -has_label[block].to(p.dtype))
        add_at_(p, top[block], has_top[block] * (2 * z_weight * z[block, None]))
        logits[block] = p
