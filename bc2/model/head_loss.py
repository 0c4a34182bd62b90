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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bc2.errors import DataError

#: A label that takes no part in the loss.
IGNORE = -100

#: Bytes of the [C, V] buffer: larger makes fewer passes over the weight's gradient.
CHUNK_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}

#: Bytes of the [R, V] block in which softmax runs.
BLOCK_BYTES = 1 << 23

#: Rows of the weight that are normalised or scaled at a time.
WEIGHT_ROWS = 4096

#: Columns that the search for a row's maximum takes at once.
MAX_COLUMNS = 256


@dataclass(frozen=True)
class HeadLoss:
    """Sums over the labelled tokens; only `loss_sum` carries a gradient."""

    loss_sum: Tensor
    """Σ CE + z_weight · z², in nats: fp32, or fp64 for fp64 input."""
    ce_sum: Tensor
    """Σ CE in nats: fp64."""
    z_sum: Tensor
    """Σ z, the largest logits: fp64."""
    z2_sum: Tensor
    """Σ z²: fp64."""
    count: int
    """Tokens summed over."""


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    z_weight: float,
    norm_head: bool = True,
    chunk_tokens: int | None = None,
) -> HeadLoss:
    """Cross-entropy and max-z loss of a linear head, without ever holding all logits.

    Matrix products run in the inputs' dtype; softmax, sums and the accumulated gradient of
    the weight are in fp32 (fp64 for fp64 inputs). The result is a sum: divide by the tokens
    of the whole optimizer step. Without a gradient to compute, that work is skipped.

    Args:
        hidden: [T, D], bf16, fp32 or fp64.
        weight: [V, D] in the same dtype; the raw parameter, also with NormHead.
        labels: int64 [T], the token that follows each, or -100 to leave it out.
        z_weight: weight of z² (2e-4 in the paper, 0 when fine-tuning).
        norm_head: scale the weight's rows to unit length first.
        chunk_tokens: C; chosen by memory if None.

    Raises:
        DataError: a label outside the vocabulary.
        ValueError: shapes or dtypes that do not belong together.
    """
    _check(hidden, weight, labels)
    kept = labels != IGNORE
    if not bool(kept.all()):
        hidden, labels = hidden[kept], labels[kept]
    _check_labels(labels, len(weight), kept)
    if chunk_tokens is None:
        budget = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cpu"])
        chunk_tokens = max(64, budget // (len(weight) * hidden.element_size()) // 64 * 64)
    with_grad = torch.is_grad_enabled()
    loss_sum, ce_sum, z_sum, z2_sum = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, z_weight, norm_head, chunk_tokens, with_grad
    )
    return HeadLoss(loss_sum, ce_sum, z_sum, z2_sum, len(labels))


def _check(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} does not fit weight {tuple(weight.shape)}")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"{tuple(labels.shape)} labels for {len(hidden)} tokens")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}")
    if hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        # In fp16 most of a softmax over a large vocabulary is below the smallest number.
        raise ValueError(f"{hidden.dtype} is not supported; use bfloat16, float32 or float64")


def _check_labels(labels: Tensor, vocab_size: int, kept: Tensor) -> None:
    wrong = ((labels < 0) | (labels >= vocab_size)).nonzero()
    if len(wrong):
        token = int(kept.nonzero()[int(wrong[0])])
        raise DataError(
            f"label {int(labels[wrong[0]])} is outside the vocabulary of {vocab_size}",
            where=f"token {token} of the batch",
            todo="check that the token shards were made with this model's tokenizer",
        )


class _HeadLoss(torch.autograd.Function):
    """See `head_loss`. Every label is in the vocabulary here."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        z_weight: float,
        norm_head: bool,
        chunk_tokens: int,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wants_hidden = with_grad and ctx.needs_input_grad[0]
        wants_weight = with_grad and ctx.needs_input_grad[1]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        head, lengths = _unit_rows(weight, wide) if norm_head else (weight, None)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = _WeightGradient(weight, wide) if wants_weight else None
        ce, z = (torch.empty(len(labels), dtype=wide, device=hidden.device) for _ in range(2))
        rows = min(chunk_tokens, len(labels))
        buffer = torch.empty(rows, len(weight), dtype=hidden.dtype, device=hidden.device)
        for chunk in _spans(len(labels), chunk_tokens):
            scores = buffer[: chunk.stop - chunk.start]
            torch.mm(hidden[chunk], head.t(), out=scores)
            _losses_(scores, labels[chunk], ce[chunk], z[chunk], z_weight)
            if grad_hidden is not None:
                torch.mm(scores, head, out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight.add(scores, hidden[chunk])
        if grad_weight is not None and lengths is not None:
            _through_normalization_(grad_weight.total, weight, lengths)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.total)
        ctx.weight_dtype = weight.dtype
        ce_sum, z_sum, z2_sum = ce.double().sum(), z.double().sum(), z.double().square().sum()
        ctx.mark_non_differentiable(ce_sum, z_sum, z2_sum)
        return (ce_sum + z_weight * z2_sum).to(wide), ce_sum, z_sum, z2_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, total = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        grad_weight = None if total is None else _scaled(total, scale, ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def _losses_(scores: Tensor, labels: Tensor, ce: Tensor, z: Tensor, z_weight: float) -> None:
    """Turn logits [C, V] into their gradient in place, and fill `ce` and `z` [C]."""
    rows = max(1, BLOCK_BYTES // (scores.shape[1] * ce.element_size()))
    shape = (min(rows, len(scores)), scores.shape[1])
    logits = torch.empty(shape, dtype=ce.dtype, device=scores.device)
    same = scores.dtype == ce.dtype
    rounded = logits if same else torch.empty_like(logits)
    for block in _spans(len(scores), rows):
        count = block.stop - block.start
        x = logits[:count].copy_(scores[block])
        p = scores[block] if same else rounded[:count]
        top_logit, top = row_max(x)
        label = labels[block, None]
        label_logit = x.gather(1, label)
        torch.softmax(x, dim=-1, out=p)
        # log Σ exp = z - log p(z): softmax has the sum already and this reads it back.
        torch.sub(top_logit - p.gather(1, top).log(), label_logit, out=ce[block, None])
        z[block, None] = top_logit
        p.scatter_add_(1, label, torch.full_like(label_logit, -1.0))
        p.scatter_add_(1, top, 2 * z_weight * top_logit)
        if not same:
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


class _WeightGradient:
    """Σ over chunks of dlogitsᵀ hidden, in fp32 or better whatever the products are in."""

    def __init__(self, weight: Tensor, wide: torch.dtype):
        self.total = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        self.product = None if weight.dtype == wide else torch.empty_like(weight)

    def add(self, scores: Tensor, hidden: Tensor) -> None:  # [C, V], [C, D]
        if self.product is None:
            self.total.addmm_(scores.t(), hidden)
        else:
            self.total.add_(torch.mm(scores.t(), hidden, out=self.product))


def _unit_rows(weight: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """weight with rows of unit length, and their lengths [V, 1] (at least 1e-12)."""
    unit = torch.empty_like(weight)
    lengths = torch.empty(len(weight), 1, dtype=wide, device=weight.device)
    for span in _spans(len(weight), WEIGHT_ROWS):
        rows = weight[span].to(wide)
        lengths[span] = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1e-12)
        unit[span] = rows / lengths[span]
    return unit, lengths


def _through_normalization_(grad: Tensor, weight: Tensor, lengths: Tensor) -> None:
    """Gradient of unit rows -> gradient of the rows, in place: (g - (g·u) u) / length."""
    for span in _spans(len(weight), WEIGHT_ROWS):
        unit = weight[span].to(grad.dtype) / lengths[span]
        along = (grad[span] * unit).sum(dim=1, keepdim=True)
        # A row of no length is divided by a constant: nothing is projected away.
        along.masked_fill_(lengths[span] <= 1e-12, 0.0)
        grad[span].addcmul_(along, unit, value=-1.0).div_(lengths[span])


def _scaled(total: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """total · scale in dtype, without a second copy in total's."""
    scaled = torch.empty(total.shape, dtype=dtype, device=total.device)
    for span in _spans(len(total), WEIGHT_ROWS):
        scaled[span] = total[span] * scale
    return scaled


def _spans(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
