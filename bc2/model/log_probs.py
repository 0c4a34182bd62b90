"""Log-probabilities of given tokens, a chunk of tokens at a time.

Shapes:
    T  tokens      D  hidden size      V  vocabulary, or this rank's part of it
    C  tokens of a chunk      N  tokens of a chunk that have a label      K  likeliest tokens

The gradients of log-probabilities are known only after the loss has used them, so they cannot be
computed in the forward pass as in `head_loss`. [T, V] never exists all the same: the forward pass
keeps a few numbers of each token's logits l, and the backward pass computes l again. With z the
largest logit, p = softmax(l), y the label and H the entropy,

    log p(y) = l(y) - z - log Σ exp(l - z)        ∂ log p(y) / ∂l = 1[y] - p
    H = -Σ p log p                                ∂H / ∂l = -p (log p + H)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bc2.model.head_loss import IGNORE, check_labels, check_shapes, filled_up
from bc2.model.head_sizes import chunk_size
from bc2.model.head_weight import WeightGradient, at_least_fp32, head_rows, spans
from bc2.model.softmax import (
    VocabularyShard,
    add_at_,
    own_columns,
    row_blocks,
    scaled,
    scratch,
    softmax_sums,
)


class TokenLogProbs(NamedTuple):
    """The results for each token and its label; `log_probs` and `entropy` carry gradients.

    A token whose label is -100 has 0 in the numbers, False in `greedy` and -1 in `top_ids`.
    """

    log_probs: Tensor
    """log p(label) [T], in nats: fp32, or fp64 for fp64 input."""
    greedy: Tensor
    """Whether the label is the likeliest token: bool [T]. Of equally likely tokens only the one
    with the lowest id counts as the likeliest."""
    entropy: Tensor | None
    """-Σ p log p over the vocabulary [T], in nats; None unless it was asked for."""
    top_log_probs: Tensor | None
    """Log-probabilities of the likeliest tokens [T, K], descending; None if K is 0."""
    top_ids: Tensor | None
    """Ids of these tokens, int64 [T, K]. Of equally likely tokens the lowest ids are taken, in
    ascending order."""


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    norm_head: bool,
    temperature: float = 1.0,
    entropy: bool = False,
    top_k: int = 0,
    shard: VocabularyShard | None = None,
    chunk_tokens: int | None = None,
    compiled: bool = False,
) -> TokenLogProbs:
    """Log-probabilities of `labels` under a linear head, without ever holding all logits.

    Any function of the log-probabilities and entropies may be differentiated. For example,
    ``-(weights * log_probs).sum()`` is a loss with a weight for each token. The forward pass
    skips tokens without a label, and the backward pass also skips tokens whose gradient is 0;
    skipped tokens cost nothing. No gradient is computed or allocated for a `hidden` or `weight`
    that requires none. The backward pass can run again after `retain_graph=True`.

    Matrix products run in hidden's dtype; softmax, sums and the accumulated gradient of the
    weight are in fp32 (fp64 for fp64 inputs). If only the sum over labels is needed, `head_loss`
    computes it with three matrix products instead of four.

    Args:
        hidden: [T, D], bf16, fp32 or fp64.
        weight: [V, D]; the raw parameter, also with NormHead. In hidden's dtype, or in fp32
            with bf16 hidden states: then the rows are rounded to bf16 after they are scaled to
            unit length, and the gradient is not rounded.
        labels: int64 [T], the id that each is to say, or -100 to skip the token.
        norm_head: scale the weight's rows to unit length first.
        temperature: divides the logits, for all results.
        entropy: compute `TokenLogProbs.entropy`.
        top_k: K; 0 for none.
        shard: describes `weight` if it is this rank's part of the head. Every rank gets the
            results for the whole vocabulary, the gradient of its own rows, and the whole
            gradient of `hidden`. Upstream gradients must be the same on every rank.
        chunk_tokens: C; if None, as many as memory allows (`chunk_size`).
        compiled: compile the passes over the weight with torch.compile.

    Raises:
        DataError: a label is outside the vocabulary.
        ValueError: shapes or dtypes do not fit together, the temperature is not a finite number
            above 0, `top_k` exceeds the vocabulary, or `chunk_tokens` is below 1.
    """
    check_shapes(hidden, weight, labels)
    vocab_size = shard.size if shard else len(weight)
    check_labels(labels.cpu().numpy(), vocab_size)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if not 0 <= top_k <= vocab_size:
        raise ValueError(f"top_k is {top_k}; the vocabulary has {vocab_size} tokens")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    options = _Options(norm_head, temperature, entropy, top_k, shard, chunk_tokens, compiled)
    with torch.autocast(hidden.device.type, enabled=False):
        found = _TokenLogProbs.apply(hidden, weight, labels, options)  # type: ignore[no-untyped-call]
    return TokenLogProbs(*found)


@dataclass(frozen=True)
class _Options:
    """The options of `token_log_probs`, for both passes."""

    norm_head: bool
    temperature: float
    entropy: bool
    top_k: int
    shard: VocabularyShard | None
    chunk_tokens: int | None
    compiled: bool


class _TokenLogProbs(torch.autograd.Function):
    """See `token_log_probs`, which has checked that the labels are in the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, options: _Options
    ) -> tuple[Tensor | None, ...]:
        head, _ = head_rows(weight, hidden.dtype, options.norm_head, compiled=options.compiled)
        found = _Results(labels, at_least_fp32(hidden.dtype), len(head), options)
        for tokens, _, logits in _chunks(hidden, head, labels != IGNORE, options):
            found.fill(tokens, labels[tokens], logits)
        entropy = found.entropy if options.entropy else None
        top_log_probs, top_ids = found.top() if options.top_k else (None, None)
        ctx.options = options
        numbers = found.z, found.log_sum, found.share, found.entropy
        ctx.save_for_backward(hidden, weight, labels, *numbers)
        ctx.set_materialize_grads(False)
        no_gradient = (found.greedy, top_log_probs, top_ids)
        ctx.mark_non_differentiable(*(x for x in no_gradient if x is not None))
        return found.log_probs, found.greedy, entropy, top_log_probs, top_ids

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_log_probs: Tensor | None, _: None, of_entropy: Tensor | None, *__: None
    ) -> tuple[Tensor | None, ...]:
        # Autocast is off, so that a backward pass called inside of it gives the same gradients.
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return _gradients(ctx, of_log_probs, of_entropy)


def _gradients(
    ctx: Any, of_log_probs: Tensor | None, of_entropy: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the hidden states and the weight, from logits that are computed again."""
    hidden, weight, labels, *numbers = ctx.saved_tensors
    options: _Options = ctx.options
    factors = _factors(of_log_probs, of_entropy, *numbers, temperature=options.temperature)
    head, lengths = head_rows(weight, hidden.dtype, options.norm_head, compiled=options.compiled)
    of_hidden, of_weight = None, None
    if ctx.needs_input_grad[0]:
        of_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    if ctx.needs_input_grad[1]:
        of_weight = WeightGradient(head, compiled=options.compiled)
    chosen = factors.wanted & (labels != IGNORE)
    for tokens, x, logits in _chunks(hidden, head, chosen, options):
        count = len(tokens)
        _logit_gradients_(logits[:count], labels[tokens], factors.at(tokens), options)
        logits[count:] = 0.0
        if of_hidden is not None:
            of_hidden[tokens] = torch.mm(logits, head)[:count]
        if of_weight is not None:
            of_weight.add(logits, x)
    if of_hidden is not None and options.shard is not None:
        options.shard.all_reduce(of_hidden)
    total = None
    if of_weight is not None:
        total = of_weight.of(weight, lengths, factors.label.new_ones(()))
    return of_hidden, total, None, None


def _chunks(
    hidden: Tensor, head: Tensor, chosen: Tensor, options: _Options
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Indices [N], hidden states and logits of the chosen tokens, chunk by chunk.

    Hidden states [C, D] and logits [C, V] may have a few more rows than N, which round up the
    number of tokens: see `filled_up`. The logits of all chunks are written into one buffer.
    """
    index = chosen.nonzero()[:, 0]
    count = len(index)
    filler = index[:1].expand(filled_up(count, len(chosen)) - count)
    index = torch.cat((index, filler))
    size = options.chunk_tokens
    if size is None:
        size = chunk_size(len(index), len(head), hidden.device.type)
    longest = min(size, len(index))
    buffer = torch.empty(longest, len(head), dtype=hidden.dtype, device=hidden.device)
    for chunk in spans(len(index), size):
        tokens = index[chunk]
        x = hidden[tokens]
        logits = torch.mm(x, head.t(), out=buffer[: len(tokens)])
        yield tokens[: max(0, count - chunk.start)], x, logits


class _Results:
    """The results of the forward pass, filled in a chunk at a time."""

    def __init__(self, labels: Tensor, dtype: torch.dtype, columns: int, options: _Options):
        self.options = options
        self.columns = columns
        self.greedy = torch.zeros_like(labels, dtype=torch.bool)
        self.z, self.log_sum, self.share, self.log_probs, self.entropy = (
            torch.zeros_like(labels, dtype=dtype) for _ in range(5)
        )
        shape = (len(labels), min(options.top_k, columns))
        self.top_logits = self.z.new_zeros(shape)
        self.top_ids = labels.new_full(shape, -1)

    def fill(self, tokens: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Fill in a chunk: the indices [N] and labels [N] of its tokens, and logits [C, V]."""
        options = self.options
        logits = logits[: len(tokens)]
        sums = softmax_sums(
            logits,
            labels,
            self.z.dtype,
            options.shard,
            temperature=options.temperature,
            entropy=options.entropy,
        )
        log_sum = sums.sum_exp.log()
        log_probs = sums.label_logit - sums.top_logit - log_sum
        self.z[tokens], self.log_sum[tokens] = sums.top_logit, log_sum
        self.share[tokens], self.log_probs[tokens] = sums.share, log_probs
        # If a logit is NaN, no token is the likeliest.
        self.greedy[tokens] = (sums.top_id == labels) & ~log_probs.isnan()
        if sums.sum_exp_logit is not None:
            self.entropy[tokens] = log_sum - sums.sum_exp_logit / sums.sum_exp
        if options.top_k:
            wide = scratch(logits, self.z.dtype)
            for block in row_blocks(logits, self.z.dtype):
                x = scaled(logits[block], wide[: block.stop - block.start], options.temperature)
                ids = largest(x, self.top_ids.shape[1])
                self.top_logits[tokens[block]] = x.gather(1, ids)
                self.top_ids[tokens[block]] = ids

    def top(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids of the likeliest tokens of the whole vocabulary: [T, K]."""
        logits, ids = self.top_logits, self.top_ids
        shard = self.options.shard
        if shard is not None:
            ids = torch.where(ids < 0, ids, ids + shard.first)
            logits, ids = (_all_gather(x, self.columns, shard) for x in (logits, ids))
            # Ids ascend with the rank, so a stable sort keeps the lowest id first.
            order = logits.argsort(dim=1, descending=True, stable=True)[:, : self.options.top_k]
            logits, ids = logits.gather(1, order), ids.gather(1, order)
        return logits - self.z[:, None] - self.log_sum[:, None], ids


def _all_gather(x: Tensor, columns: int, shard: VocabularyShard) -> Tensor:
    """Gather the columns of all ranks: [T, K] -> [T, ranks · K].

    It is a sum in which every column is zero on all ranks but one, so it is exact.
    """
    ranks = x.new_zeros(len(x), shard.size // columns, x.shape[1])
    ranks[:, shard.first // columns] = x
    return shard.all_reduce(ranks).flatten(1)


def largest(x: Tensor, count: int) -> Tensor:
    """The columns of each row's largest numbers, descending: [R, V] -> [R, count].

    Of equal numbers the lowest columns are taken, in ascending order. NaN counts as infinite.
    """
    x = x.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    # topk gives the right values, but of equal numbers it takes any.
    least = x.topk(count).values[:, -1:]
    more, equal = x > least, x == least
    missing = count - more.sum(dim=-1, keepdim=True)
    taken = more | (equal & (equal.cumsum(dim=-1) <= missing))
    columns = taken.nonzero()[:, 1].view(len(x), count)
    order = x.gather(1, columns).argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, order)


class _Factors(NamedTuple):
    """Factors [T] from which the gradient of a token's logits is computed.

    g and e are the upstream gradients of log p(y) and of H. q is the softmax over this rank's
    logits, so that p is q times this rank's share. Then

        g 1[y] - p (g + e (log p + H)) = label 1[y] + q (constant + slope (l - z))
    """

    label: Tensor
    constant: Tensor
    slope: Tensor | None
    """None where e is 0 for every token."""
    z: Tensor
    wanted: Tensor
    """bool [T]: whether a token has an upstream gradient."""

    def at(self, tokens: Tensor) -> _Factors:
        """The factors of some tokens, given by index."""
        slope = None if self.slope is None else self.slope[tokens]
        of_label, constant = self.label[tokens], self.constant[tokens]
        return _Factors(of_label, constant, slope, self.z[tokens], self.wanted[tokens])


def _factors(
    of_log_probs: Tensor | None,
    of_entropy: Tensor | None,
    z: Tensor,
    log_sum: Tensor,
    share: Tensor,
    entropy: Tensor,
    *,
    temperature: float,
) -> _Factors:
    g = torch.zeros_like(z) if of_log_probs is None else of_log_probs
    share = -share / temperature
    if of_entropy is None:
        return _Factors(g / temperature, g * share, None, z, g != 0)
    constant = (g + of_entropy * (entropy - log_sum)) * share
    some = (g != 0) | (of_entropy != 0)
    return _Factors(g / temperature, constant, of_entropy * share, z, some)


def _logit_gradients_(logits: Tensor, labels: Tensor, factors: _Factors, options: _Options) -> None:
    """Turn logits [N, V] into their gradient in place; labels and factors are [N]."""
    dtype = factors.constant.dtype
    label, has_label = own_columns(labels, logits.shape[1], options.shard)
    of_label = factors.label[:, None] * has_label
    constant = factors.constant[:, None]
    wide, softmax = (scratch(logits, dtype) for _ in range(2))
    for block in row_blocks(logits, dtype):
        count = block.stop - block.start
        x = scaled(logits[block], wide[:count], options.temperature)
        q = torch.softmax(x, dim=-1, out=softmax[:count])
        if factors.slope is None:
            grad = torch.mul(q, constant[block], out=x)
        else:
            grad = x.sub_(factors.z[block, None]).mul_(factors.slope[block, None])
            grad.add_(constant[block]).mul_(q)
        add_at_(grad, label[block], of_label[block])
        # `grad` is the buffer itself if nothing had to be converted.
        if grad.data_ptr() != logits[block].data_ptr():
            logits[block] = grad
