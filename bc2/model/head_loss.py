"""The head and its loss, fused and computed a chunk of tokens at a time (Baichuan 2, section 2.7).

Shapes:
    T  tokens      M  tokens that have a label      D  hidden size      V  vocabulary
    C  tokens of a chunk

The loss of a token is CE + z_weight · z² (equation 1), where z is its largest logit over the
NormHead weights. The gradient of the sum depends on the rest of the network only by one scalar
factor. So it is computed in the forward pass, chunk by chunk, and [T, V] never exists: the memory
needed is a [C, V] buffer and an fp32 gradient of the weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bc2.errors import DataError
from bc2.model.head_sizes import chunk_size
from bc2.model.head_weight import WeightGradient, at_least_fp32, head_rows, spans
from bc2.model.softmax import VocabularyShard, own_columns, row_blocks, row_max, softmax_sums

#: The label of a token that is left out of the loss.
IGNORE = -100

#: The number of labelled tokens is rounded up to a multiple of this.
ROUND_TOKENS = 128


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
    """M, the tokens summed over."""


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
    of the whole optimizer step. Gradients that are not required are not computed. The backward
    pass can run once only.

    Args:
        hidden: [T, D], bf16, fp32 or fp64.
        weight: [V, D]; the raw parameter, also with NormHead. In hidden's dtype, or in fp32
            with bf16 hidden states: then the rows are rounded to bf16 after they are scaled to
            unit length, and the gradient is not rounded.
        labels: int64 [T], the token that follows each, or -100 to leave the token out.
        z_weight: weight of z² (2e-4 in the paper, 0 when fine-tuning).
        norm_head: scale the weight's rows to unit length first.
        chunk_tokens: C; if None, as many as memory allows (`chunk_size`).
        shard: describes `weight` if it is this rank's part of the head. Logits stay on their
            rank: the ranks exchange three numbers for each token. Every rank gets the sums over
            the whole vocabulary, the gradient of its own rows, and the whole gradient of
            `hidden`.
        compiled: compile the passes over the weight with torch.compile; meant for a CPU.

    Raises:
        DataError: a label is outside the vocabulary.
        ValueError: shapes or dtypes do not fit together.
    """
    check_shapes(hidden, weight, labels)
    check_labels(labels, shard.size if shard else len(weight))
    count = int(torch.count_nonzero(labels != IGNORE))
    if count < len(labels):
        kept = _labelled_first(labels, count)
        hidden, labels = hidden.index_select(0, kept), labels.index_select(0, kept)
    if chunk_tokens is None:
        size, device = hidden.element_size(), hidden.device.type
        chunk_tokens = chunk_size(len(hidden), len(weight), size, device)
    with_grad = torch.is_grad_enabled()
    loss_sum, ce_sum, z_sum, z2_sum = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, count, z_weight, norm_head, chunk_tokens, with_grad, shard, compiled
    )
    return HeadLoss(loss_sum, ce_sum, z_sum, z2_sum, count)


def check_shapes(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    """Check that hidden [T, D], weight [V, D] and labels [T] fit together.

    Raises:
        ValueError: their shapes or dtypes do not.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} does not fit weight {tuple(weight.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype}; use int64")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"{tuple(labels.shape)} labels for {len(hidden)} tokens")
    if hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        # In fp16 most probabilities of a softmax over a large vocabulary underflow to 0.
        raise ValueError(f"{hidden.dtype} is not supported; use bfloat16, float32 or float64")
    if weight.dtype != hidden.dtype and weight.dtype != at_least_fp32(hidden.dtype):
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}")


def check_labels(labels: Tensor, vocab_size: int) -> None:
    """Check labels [T].

    Raises:
        DataError: one is outside the vocabulary, and not -100.
    """
    outside = (labels >= vocab_size) | ((labels < 0) & (labels != IGNORE))
    wrong = outside.nonzero()
    if len(wrong):
        raise DataError(
            f"label {int(labels[wrong[0]])} is outside the vocabulary of {vocab_size}",
            where=f"token {int(wrong[0])} of the batch",
            todo="check that the token shards were made with this model's tokenizer",
        )


def _labelled_first(labels: Tensor, count: int) -> Tensor:
    """Indices of the labelled tokens, followed by other tokens up to a round number.

    The number of labelled tokens differs from batch to batch. Allocators and kernels keep
    something for every size that they see, so without the rounding memory would grow.
    """
    order = (labels == IGNORE).to(torch.int8).argsort(stable=True)
    return order[: filled_up(count, len(labels))]


def filled_up(count: int, most: int) -> int:
    """`count` rounded up to a multiple of `ROUND_TOKENS`, but not above `most`."""
    return min(most, -(-count // ROUND_TOKENS) * ROUND_TOKENS)


_NO_GRADIENT = "the head's loss can run backward once, and only with gradients enabled"


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
        longest = min(chunk_tokens, len(labels))
        buffer = torch.empty(longest, len(weight), dtype=hidden.dtype, device=hidden.device)
        for chunk in spans(len(labels), chunk_tokens):
            logits = buffer[: chunk.stop - chunk.start]
            torch.mm(hidden[chunk], head.t(), out=logits)
            known = slice(chunk.start, max(chunk.start, min(chunk.stop, count)))
            here = known.stop - known.start
            losses = (logits[:here], labels[known], ce[known], z[known], z_weight)
            if shard is None:
                _losses_(*losses)
            else:
                _sharded_losses_(*losses, shard)
            logits[here:] = 0.0
            if grad_hidden is not None:
                torch.mm(logits, head, out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight.add(logits, hidden[chunk])
        ctx.grad_hidden, ctx.grad_weight = grad_hidden, grad_weight
        ctx.weight, ctx.lengths, ctx.shard = weight, lengths, shard
        ce_sum, z_sum, z2_sum = ce.double().sum(), z.double().sum(), z.double().square().sum()
        ctx.mark_non_differentiable(ce_sum, z_sum, z2_sum)
        return (ce_sum + z_weight * z2_sum).to(wide), ce_sum, z_sum, z2_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients are scaled in place, so this can run once only.
        grad_hidden, ctx.grad_hidden = ctx.grad_hidden, None
        grad_weight, ctx.grad_weight = ctx.grad_weight, None
        if ctx.needs_input_grad[0]:
            if grad_hidden is None:
                raise RuntimeError(_NO_GRADIENT)
            grad_hidden.mul_(scale.to(grad_hidden.dtype))
            if ctx.shard is not None:
                ctx.shard.all_reduce(grad_hidden)
        total = None
        if ctx.needs_input_grad[1]:
            if grad_weight is None:
                raise RuntimeError(_NO_GRADIENT)
            total = grad_weight.of(ctx.weight, ctx.lengths, scale)
        return grad_hidden, total, None, None, None, None, None, None, None, None


def _losses_(logits: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float) -> None:
    """Turn logits [C, V] into their gradient in place, and fill `ce` and `z` [C]."""
    blocks = row_blocks(logits, ce.dtype)
    shape = (blocks[0].stop if blocks else 0, logits.shape[1])
    same = logits.dtype == ce.dtype
    wide, p = (torch.empty(shape, dtype=ce.dtype, device=logits.device) for _ in range(2))
    for block in blocks:
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
        probability.scatter_add_(1, label, torch.full_like(label_logit, -1.0))
        probability.scatter_add_(1, top, 2 * z_weight * top_logit)
        logits[block] = probability


def _sharded_losses_(
    logits: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float, shard: VocabularyShard
) -> None:
    """`_losses_` where each rank has some of the columns of the logits."""
    sums = softmax_sums(logits, labels, ce.dtype, shard)
    z.copy_(sums.top_logit)
    torch.sub(z + sums.sum_exp.log(), sums.label_logit, out=ce)
    columns = logits.shape[1]
    label, has_label = own_columns(labels, columns, shard)
    top, has_top = own_columns(sums.top_id, columns, shard)
    for block in row_blocks(logits, ce.dtype):
        p = logits[block].to(ce.dtype).sub_(z[block, None]).exp_().div_(sums.sum_exp[block, None])
        p.scatter_add_(1, label[block], -has_label[block].to(p.dtype))
        p.scatter_add_(1, top[block], has_top[block] * (2 * z_weight * z[block, None]))
        logits[block] = p
