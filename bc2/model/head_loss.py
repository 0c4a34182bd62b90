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

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bc2.errors import DataError
from bc2.model.head_sizes import chunk_size
from bc2.model.head_weight import WeightGradient, at_least_fp32, head_rows, spans
from bc2.model.softmax import VocabularyShard
from bc2.model.token_losses import compiled_token_losses_, token_losses_
from bc2.model.transfer import to_device

#: The label of a token that is left out of the loss.
IGNORE = -100

#: The number of labelled tokens is rounded up to a multiple of this.
ROUND_TOKENS = 128

#: A compiled loss leaves tokens without a label where they are if fewer than this share are.
FEW_UNLABELLED = 1 / 16


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
        labels: int64 [T], the id that each is to say, or -100 to leave the token out.
        z_weight: weight of z² (2e-4 in the paper, 0 when fine-tuning).
        norm_head: scale the weight's rows to unit length first.
        chunk_tokens: C; if None, as many as memory allows (`chunk_size`).
        shard: describes `weight` if it is this rank's part of the head. Logits stay on their
            rank: the ranks exchange three numbers for each token. Every rank gets the sums over
            the whole vocabulary, the gradient of its own rows, and the whole gradient of
            `hidden`.
        compiled: use torch.compile for the passes over the weight and, on a GPU, the logits.

    Raises:
        DataError: a label is outside the vocabulary.
        ValueError: shapes or dtypes do not fit together.
    """
    check_shapes(hidden, weight, labels)
    on_host = labels.cpu().numpy()
    check_labels(on_host, shard.size if shard else len(weight))
    count = int(np.count_nonzero(on_host != IGNORE))
    in_one_pass = shard is None and _compiles_softmax(hidden.device, compiled)
    least = len(labels) * (1 - FEW_UNLABELLED) if in_one_pass else len(labels)
    kept = None
    if count < least:
        order = _labelled_first(on_host, count)
        labels = torch.from_numpy(on_host[order])
        kept = to_device(torch.from_numpy(order), hidden.device)
    options = _Options(
        count, z_weight, norm_head, chunk_tokens, shard, compiled, in_one_pass,
        with_grad=torch.is_grad_enabled(),
    )  # fmt: skip
    labels = to_device(labels, hidden.device)
    found = _HeadLoss.apply(hidden, weight, labels, kept, options)  # type: ignore[no-untyped-call]
    loss_sum, ce_sum, z_sum, z2_sum = found
    return HeadLoss(loss_sum, ce_sum, z_sum, z2_sum, count)


def _compiles_softmax(device: torch.device, compiled: bool) -> bool:
    # On a CPU the blocks stay in its cache, and compiled code is slower (docs/benchmarks.md).
    return compiled and device.type != "cpu"


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


def check_labels(labels: npt.NDArray[np.int64], vocab_size: int) -> None:
    """Check labels [T].

    Raises:
        DataError: one is outside the vocabulary, and not -100.
    """
    wrong = np.flatnonzero((labels >= vocab_size) | ((labels < 0) & (labels != IGNORE)))
    if len(wrong):
        raise DataError(
            f"label {int(labels[wrong[0]])} is outside the vocabulary of {vocab_size}",
            where=f"token {int(wrong[0])} of the batch",
            todo="check that the token shards were made with this model's tokenizer",
        )


def _labelled_first(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Indices of the labelled tokens, followed by other tokens up to a round number.

    The number of labelled tokens differs from batch to batch. Allocators and kernels keep
    something for every size that they see, so without the rounding memory would grow.
    """
    order = np.argsort(labels == IGNORE, kind="stable")
    return order[: filled_up(count, len(labels))]


def filled_up(count: int, most: int) -> int:
    """`count` rounded up to a multiple of `ROUND_TOKENS`, but not above `most`."""
    return min(most, -(-count // ROUND_TOKENS) * ROUND_TOKENS)


_NO_GRADIENT = "the head's loss can run backward once, and only with gradients enabled"


@dataclass(frozen=True)
class _Options:
    """The options of `head_loss`, for both passes."""

    count: int
    """Tokens that have a label."""
    z_weight: float
    norm_head: bool
    chunk_tokens: int | None
    shard: VocabularyShard | None
    compiled: bool
    in_one_pass: bool
    """Use `compiled_token_losses_`: tokens without a label may be anywhere."""
    with_grad: bool


class _HeadLoss(torch.autograd.Function):
    """See `head_loss`, which has checked the labels.

    `kept` has the indices of the tokens that take part, those with a label first; None: all
    tokens do. `labels` are those of the tokens that take part.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        kept: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.shape, ctx.kept, ctx.weight, ctx.shard = hidden.shape, kept, weight, options.shard
        x = hidden if kept is None else hidden.index_select(0, kept)
        wants_hidden, wants_weight = (options.with_grad and ctx.needs_input_grad[i] for i in (0, 1))
        head, ctx.lengths = head_rows(weight, x.dtype, options.norm_head, compiled=options.compiled)
        ctx.grad_hidden = torch.empty_like(x) if wants_hidden else None
        ctx.grad_weight = WeightGradient(head, compiled=options.compiled) if wants_weight else None
        wide = at_least_fp32(x.dtype)
        ce, z = (torch.zeros(len(labels), dtype=wide, device=x.device) for _ in range(2))
        size = options.chunk_tokens or chunk_size(len(x), len(weight), x.device.type)
        buffer = torch.empty(min(size, len(x)), len(weight), dtype=x.dtype, device=x.device)
        for chunk in spans(len(x), size):
            logits = buffer[: chunk.stop - chunk.start]
            torch.mm(x[chunk], head.t(), out=logits)
            _chunk_losses_(logits, labels, ce, z, chunk, options)
            if ctx.grad_hidden is not None:
                torch.mm(logits, head, out=ctx.grad_hidden[chunk])
            if ctx.grad_weight is not None:
                ctx.grad_weight.add(logits, x[chunk])
        ce_sum, z_sum, z2_sum = ce.double().sum(), z.double().sum(), z.double().square().sum()
        ctx.mark_non_differentiable(ce_sum, z_sum, z2_sum)
        return (ce_sum + options.z_weight * z2_sum).to(wide), ce_sum, z_sum, z2_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients are scaled in place, so this can run once only.
        grad_hidden, ctx.grad_hidden = ctx.grad_hidden, None
        grad_weight, ctx.grad_weight = ctx.grad_weight, None
        if (ctx.needs_input_grad[0] and grad_hidden is None) or (
            ctx.needs_input_grad[1] and grad_weight is None
        ):
            raise RuntimeError(_NO_GRADIENT)
        if grad_hidden is not None:
            # In fp32: the factor is the same for every token, and so would be its rounding error.
            grad_hidden = (grad_hidden.to(scale.dtype) * scale).to(grad_hidden.dtype)
            if ctx.kept is not None:
                grad_hidden = grad_hidden.new_zeros(ctx.shape).index_copy_(0, ctx.kept, grad_hidden)
            if ctx.shard is not None:
                ctx.shard.all_reduce(grad_hidden)
        total = None
        if grad_weight is not None:
            total = grad_weight.of(ctx.weight, ctx.lengths, scale)
        return grad_hidden, total, None, None, None


def _chunk_losses_(
    logits: Tensor, labels: Tensor, ce: Tensor, z: Tensor, chunk: slice, options: _Options
) -> None:
    """Turn the logits of a chunk of the tokens into their gradient, and fill in `ce` and `z`."""
    if options.in_one_pass:
        compiled_token_losses_(logits, labels[chunk], ce[chunk], z[chunk], options.z_weight)
        return
    known = slice(chunk.start, max(chunk.start, min(chunk.stop, options.count)))
    count = known.stop - known.start
    token_losses_(
        logits[:count], labels[known], ce[known], z[known], options.z_weight, options.shard
    )
    logits[count:] = 0.0
