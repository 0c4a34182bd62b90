"""The head and its loss in one, a chunk of tokens at a time (Baichuan 2, section 2.7).

Shapes:
    T  tokens      M  tokens that have a label      D  hidden size      V  vocabulary
    C  tokens of a chunk      R  rows of a block, few enough to stay in the processor's cache

The loss of a token is CE + z_weight · z² (equation 1), z being its largest logit over the
NormHead weights. Its gradient needs nothing from later layers but one scalar, so it is
computed in the forward pass, chunk by chunk, and [T, V] never exists: the memory is a
[C, V] buffer and an fp32 gradient of the weight.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bc2.errors import DataError
from bc2.model.head_sizes import BLOCK_BYTES, chunk_size
from bc2.model.head_weight import WeightGradient, at_least_fp32, head_rows, spans

#: A label that takes no part in the loss.
IGNORE = -100

#: Labelled tokens are filled up to a multiple of this.
ROUND_TOKENS = 128

#: Columns that the search for a row's maximum takes at once.
MAX_COLUMNS = 256


class HeadLoss(NamedTuple):
    """Sums over the labelled tokens; only `loss_sum` carries a gradient."""

    loss_sum: Tensor
    """Σ CE + z_weight · z², in nats: fp32, or fp64 for fp64 input."""
    ce_sum: Tensor
    """Σ CE in nats: fp64."""
    z_sum: Tensor
    """Σ z, the largest logits: fp64."""
    z2_sum: Tensor
    """Σ z²: fp64."""
    labelled: int
    """Tokens summed over."""


class VocabularyShard(Protocol):
    """Some rows of a head whose other rows are on other ranks, of which each has the tokens."""

    @property
    def first(self) -> int:
        """The whole head's row that is the first here."""

    @property
    def size(self) -> int:
        """Rows of the whole head."""

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        """The sum, "max" or "min" over the ranks, in place."""


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    z_weight: float,
    norm_head: bool = True,
    chunk_tokens: int | None = None,
    shard: VocabularyShard | None = None,
    compiled: bool = False,
) -> HeadLoss:
    """Cross-entropy and max-z loss of a linear head, without ever holding all logits.

    Matrix products run in hidden's dtype; softmax, sums and the accumulated gradient of
    the weight are in fp32 (fp64 for fp64 inputs). The result is a sum: divide by the tokens
    of the whole optimizer step. Without a gradient to compute, that work is skipped.

    Args:
        hidden: [T, D], bf16, fp32 or fp64.
        weight: [V, D]; the raw parameter, also with NormHead. In hidden's dtype, or in fp32
            beside bf16 hidden states: then its unit rows are what is rounded to bf16, and
            its gradient is never rounded.
        labels: int64 [T], the token that follows each, or -100 to leave it out.
        z_weight: weight of z² (2e-4 in the paper, 0 when fine-tuning).
        norm_head: scale the weight's rows to unit length first.
        chunk_tokens: C; chosen by memory if None.
        shard: `weight` is this part of the head. Logits stay where they are: of each token
            three numbers pass between the ranks. Every rank gets the whole sums, the gradient
            of its own rows, and the whole gradient of `hidden`.
        compiled: run the passes over the weight through torch.compile, made for a CPU.

    Raises:
        DataError: a label outside the vocabulary.
        ValueError: shapes or dtypes that do not belong together.
    """
    _check(hidden, weight, labels)
    _check_labels(labels, shard.size if shard else len(weight))
    count = int(torch.count_nonzero(labels != IGNORE))
    if count < len(labels):
        rows = _labelled_first(labels, count)
        hidden, labels = hidden.index_select(0, rows), labels.index_select(0, rows)
    if chunk_tokens is None:
        size, device = hidden.element_size(), hidden.device.type
        chunk_tokens = chunk_size(len(hidden), len(weight), size, device)
    with_grad = torch.is_grad_enabled()
    loss_sum, ce_sum, z_sum, z2_sum = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, count, z_weight, norm_head, chunk_tokens, with_grad, shard, compiled
    )
    return HeadLoss(loss_sum, ce_sum, z_sum, z2_sum, count)


def _check(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} does not fit weight {tuple(weight.shape)}")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"{tuple(labels.shape)} labels for {len(hidden)} tokens")
    if hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        # In fp16 most of a softmax over a large vocabulary is below the smallest number.
        raise ValueError(f"{hidden.dtype} is not supported; use bfloat16, float32 or float64")
    if weight.dtype != hidden.dtype and weight.dtype != at_least_fp32(hidden.dtype):
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}")


def _check_labels(labels: Tensor, vocab_size: int) -> None:
    outside = (labels >= vocab_size) | ((labels < 0) & (labels != IGNORE))
    wrong = outside.nonzero()
    if len(wrong):
        raise DataError(
            f"label {int(labels[wrong[0]])} is outside the vocabulary of {vocab_size}",
            where=f"token {int(wrong[0])} of the batch",
            todo="check that the token shards were made with this model's tokenizer",
        )


def _labelled_first(labels: Tensor, count: int) -> Tensor:
    """Indices of the labelled tokens, and behind them others up to a round number.

    Their number differs from batch to batch, and an allocator and kernels that see ever
    new sizes keep something of each: memory climbs.
    """
    order = (labels == IGNORE).to(torch.int8).argsort(stable=True)
    return order[: min(len(labels), -(-count // ROUND_TOKENS) * ROUND_TOKENS)]


class _HeadLoss(torch.autograd.Function):
    """See `head_loss`. The first `count` tokens have a label, and it is in the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        count: int,
        z_weight: float,
        norm_head: bool,
        chunk_tokens: int,
        with_grad: bool,
        shard: VocabularyShard | None,
        compiled: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wants_hidden = with_grad and ctx.needs_input_grad[0]
        wants_weight = with_grad and ctx.needs_input_grad[1]
        wide = at_least_fp32(hidden.dtype)
        head, lengths = head_rows(weight, hidden.dtype, norm_head, compiled=compiled)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = WeightGradient(head, compiled=compiled) if wants_weight else None
        ce, z = (torch.zeros(len(labels), dtype=wide, device=hidden.device) for _ in range(2))
        rows = min(chunk_tokens, len(labels))
        buffer = torch.empty(rows, len(weight), dtype=hidden.dtype, device=hidden.device)
        for chunk in spans(len(labels), chunk_tokens):
            scores = buffer[: chunk.stop - chunk.start]
            torch.mm(hidden[chunk], head.t(), out=scores)
            known = slice(chunk.start, max(chunk.start, min(chunk.stop, count)))
            here = known.stop - known.start
            losses = (scores[:here], labels[known], ce[known], z[known], z_weight)
            if shard is None:
                _losses_(*losses)
            else:
                _sharded_losses_(*losses, shard)
            scores[here:] = 0.0
            if grad_hidden is not None:
                torch.mm(scores, head, out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight.add(scores, hidden[chunk])
        ctx.grad_hidden, ctx.grad_weight = grad_hidden, grad_weight
        ctx.weight, ctx.lengths, ctx.shard = weight, lengths, shard
        ce_sum, z_sum, z2_sum = ce.double().sum(), z.double().sum(), z.double().square().sum()
        ctx.mark_non_differentiable(ce_sum, z_sum, z2_sum)
        return (ce_sum + z_weight * z2_sum).to(wide), ce_sum, z_sum, z2_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients are finished where they lie, so this can happen once.
        grad_hidden, ctx.grad_hidden = ctx.grad_hidden, None
        grad_weight, ctx.grad_weight = ctx.grad_weight, None
        if ctx.needs_input_grad[0]:
            if grad_hidden is None:
                raise RuntimeError("the head's loss can be taken backward once, and with gradients")
            grad_hidden.mul_(scale.to(grad_hidden.dtype))
            if ctx.shard is not None:
                ctx.shard.all_reduce(grad_hidden)
        total = None
        if ctx.needs_input_grad[1]:
            if grad_weight is None:
                raise RuntimeError("the head's loss can be taken backward once, and with gradients")
            total = grad_weight.of(ctx.weight, ctx.lengths, scale)
        return grad_hidden, total, None, None, None, None, None, None, None, None


def _losses_(scores: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float) -> None:
    """Turn logits [C, V] into their gradient in place, and fill `ce` and `z` [C]."""
    rows = max(1, BLOCK_BYTES // (scores.shape[1] * ce.element_size()))
    shape = (min(rows, len(scores)), scores.shape[1])
    same = scores.dtype == ce.dtype
    logits, p = (torch.empty(shape, dtype=ce.dtype, device=scores.device) for _ in range(2))
    for block in spans(len(scores), rows):
        count = block.stop - block.start
        x = scores[block] if same else logits[:count].copy_(scores[block])
        probability = p[:count]
        top_logit, top = row_max(x)
        label = labels[block, None]
        label_logit = x.gather(1, label)
        torch.softmax(x, dim=-1, out=probability)
        # log Σ exp = z - log p(z): softmax has the sum already and this reads it back.
        torch.sub(top_logit - probability.gather(1, top).log(), label_logit, out=ce[block, None])
        z[block, None] = top_logit
        probability.scatter_add_(1, label, torch.full_like(label_logit, -1.0))
        probability.scatter_add_(1, top, 2 * z_weight * top_logit)
        scores[block] = probability


def _sharded_losses_(
    scores: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float, shard: VocabularyShard
) -> None:
    """`_losses_` where each rank has some columns of the logits.

    The maximum first, then where it is (the lowest id among equals), then the sum of
    exponentials and the label's logit, which one rank has.
    """
    columns = scores.shape[1]
    blocks = list(spans(len(scores), max(1, BLOCK_BYTES // (columns * ce.element_size()))))
    label = labels[:, None] - shard.first
    mine = (label >= 0) & (label < columns)
    label = label.clamp(0, columns - 1)
    top = torch.empty_like(label)
    sums = torch.empty(len(scores), 2, dtype=ce.dtype, device=ce.device)
    for block in blocks:
        x = scores[block].to(ce.dtype)
        z[block, None], top[block] = row_max(x)
        sums[block, 0] = (x - z[block, None]).exp_().sum(dim=-1)
        sums[block, 1:] = x.gather(1, label[block]).masked_fill_(~mine[block], 0.0)
    own = z.clone()
    shard.all_reduce(z, "max")
    sums[:, 0] *= (own - z).exp_()
    shard.all_reduce(sums)
    # A maximum over ranks may pass over NaN; a sum does not.
    z.masked_fill_(sums[:, 0].isnan() & z.isfinite(), math.nan)
    torch.sub(z + sums[:, 0].log(), sums[:, 1], out=ce)
    where = torch.where((own == z)[:, None], top + shard.first, shard.size)
    tops = shard.all_reduce(where, "min") - shard.first == top
    for block in blocks:
        p = scores[block].to(ce.dtype).sub_(z[block, None]).exp_().div_(sums[block, :1])
        p.scatter_add_(1, label[block], -mine[block].to(p.dtype))
        p.scatter_add_(1, top[block], tops[block] * (2 * z_weight * z[block, None]))
        scores[block] = p


def row_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's maximum and where it is: [R, V] -> [R, 1], [R, 1].

    Like x.max(-1) but several times faster on a CPU, which has a vector kernel for the
    value alone: find the value of every group of columns, then search one group.
    """
    columns = x.shape[1]
    if columns < 2 * MAX_COLUMNS:
        value, where = x.max(dim=-1, keepdim=True)
        return value, where
    groups = columns // MAX_COLUMNS
    body = x[:, : groups * MAX_COLUMNS].view(len(x), groups, MAX_COLUMNS)
    group = body.amax(dim=-1).argmax(dim=-1)
    value, where = body[torch.arange(len(x), device=x.device), group].max(dim=-1, keepdim=True)
    where += group[:, None] * MAX_COLUMNS
    if groups * MAX_COLUMNS < columns:
        rest, place = x[:, groups * MAX_COLUMNS :].max(dim=-1, keepdim=True)
        later = (rest > value) | rest.isnan()
        where = torch.where(later, place + groups * MAX_COLUMNS, where)
        value = torch.where(later, rest, value)
    return value, where
