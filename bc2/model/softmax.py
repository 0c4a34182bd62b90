"""Softmax over the logits of a chunk of tokens; each rank may have some of the columns.

Shapes:
    C  tokens of a chunk      V  vocabulary, or this rank's part of it
    R  rows of a block, few enough to stay in the processor's cache
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bc2.model.head_sizes import block_rows
from bc2.model.head_weight import spans

#: Columns of a group in the search for a row's maximum.
MAX_COLUMNS = 256


class VocabularyShard(Protocol):
    """This rank's part of a head whose rows are divided among ranks.

    The parts are of equal size and in the order of ranks. Every rank has all tokens.
    """

    @property
    def first(self) -> int:
        """Index, in the whole head, of this rank's first row."""

    @property
    def size(self) -> int:
        """The number of rows of the whole head."""

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        """Replace `x` by its "sum", "max" or "min" over the ranks, and return it."""


class SoftmaxSums(NamedTuple):
    """What softmax computes from the logits l of each token, over all ranks: [C] each."""

    top_logit: Tensor
    """z, the largest logit: fp32, or fp64 for fp64 logits, as the other numbers here."""
    top_id: Tensor
    """The id of the largest logit; of equal logits the lowest id."""
    sum_exp: Tensor
    """Σ exp(l - z)."""
    share: Tensor
    """The part of `sum_exp` that comes from this rank's columns, in [0, 1]."""
    label_logit: Tensor
    """The logit of the label."""
    sum_exp_logit: Tensor | None
    """Σ exp(l - z) (l - z), for the entropy; None unless it was asked for."""


def softmax_sums(
    logits: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    shard: VocabularyShard | None = None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> SoftmaxSums:
    """The sums of softmax over logits [C, V], of which each rank of a shard has some columns.

    With a shard, the ranks first reduce the maximum, then the sums and the label's logit (which
    one rank has), then the id of the maximum.

    Args:
        logits: [C, V].
        labels: int64 [C].
        dtype: of the computation; fp32 or fp64.
        temperature: divides the logits.
        entropy: compute `SoftmaxSums.sum_exp_logit`.
    """
    columns = logits.shape[1]
    label, has_label = own_columns(labels, columns, shard)
    z = torch.empty(len(logits), dtype=dtype, device=logits.device)
    top = torch.empty_like(labels)
    sums = torch.empty(len(logits), 3 if entropy else 2, dtype=dtype, device=logits.device)
    wide, first, second = (scratch(logits, dtype) for _ in range(3))
    for block in row_blocks(logits, dtype):
        count = block.stop - block.start
        x = scaled(logits[block], wide[:count], temperature)
        z[block, None], top[block, None] = row_max(x)
        sums[block, 1:2] = x.gather(1, label[block]).masked_fill_(~has_label[block], 0.0)
        below = torch.sub(x, z[block, None], out=first[:count])
        exp = torch.exp(below, out=second[:count] if entropy else below)
        sums[block, 0] = exp.sum(dim=-1)
        if entropy:
            sums[block, 2] = exp.mul_(below).sum(dim=-1)
    here = sums[:, 0]
    if shard is not None:
        top, here = _reduce_sums_(z, top + shard.first, sums, shard)
    sum_exp, label_logit = sums[:, 0], sums[:, 1]
    sum_exp_logit = sums[:, 2] if entropy else None
    return SoftmaxSums(z, top, sum_exp, here / sum_exp, label_logit, sum_exp_logit)


def _reduce_sums_(
    z: Tensor, top_id: Tensor, sums: Tensor, shard: VocabularyShard
) -> tuple[Tensor, Tensor]:
    """Combine `z` [C] and `sums` [C, 2 or 3] of all ranks, in place.

    Returns:
        The top ids [C], and this rank's part of the first column of the sums [C].
    """
    own = z.clone()
    shard.all_reduce(z, "max")
    shift = own - z
    if sums.shape[1] > 2:
        sums[:, 2] += shift * sums[:, 0]
        sums[:, 2] *= shift.exp()
    sums[:, 0] *= shift.exp_()
    here = sums[:, 0].clone()
    shard.all_reduce(sums)
    # A maximum over ranks may ignore a NaN; a sum does not.
    z.masked_fill_(sums[:, 0].isnan() & z.isfinite(), math.nan)
    return shard.all_reduce(torch.where(own == z, top_id, shard.size), "min"), here


def own_columns(ids: Tensor, columns: int, shard: VocabularyShard | None) -> tuple[Tensor, Tensor]:
    """The column of each id [C], and whether it is on this rank: both [C, 1].

    Of an id on another rank, the column is any valid one.
    """
    column = ids[:, None] if shard is None else ids[:, None] - shard.first
    here = (column >= 0) & (column < columns)
    return column.clamp(0, columns - 1), here


def row_blocks(logits: Tensor, dtype: torch.dtype) -> list[slice]:
    """Slices of the rows of logits [C, V] that softmax handles at a time, in `dtype`."""
    count, columns = logits.shape
    return list(spans(count, block_rows(columns, dtype.itemsize, logits.device.type)))


def scratch(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """A buffer [R, V] for the largest of `row_blocks`; a new one for each block takes longer."""
    blocks = row_blocks(logits, dtype)
    shape = blocks[0].stop if blocks else 0, logits.shape[1]
    return torch.empty(shape, dtype=dtype, device=logits.device)


def scaled(logits: Tensor, out: Tensor, temperature: float) -> Tensor:
    """Logits in the dtype of `out`, divided by the temperature.

    The result is written to `out`; if nothing changes, it is `logits` itself.
    """
    if logits.dtype == out.dtype and temperature == 1.0:
        return logits
    return out.copy_(logits).div_(temperature) if temperature != 1.0 else out.copy_(logits)


def add_at_(x: Tensor, column: Tensor, value: Tensor) -> None:
    """Add to one number of each row, in place: x [R, V], columns and values [R, 1].

    Unlike `scatter_add_`, which on a GPU is slow where it must give the same bits each time.
    """
    x.scatter_(1, column, x.gather(1, column).add_(value))


def row_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's maximum and its column: [R, V] -> [R, 1], [R, 1].

    Like x.max(-1), but several times faster on a CPU, where torch has a vector kernel for the
    value alone: find the maximum of every group of columns, then search one group for its column.
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
