"""Sums over the tokens of each sample, also where these lie on several sequence-parallel ranks.

What an engine differentiates is the sum of `Loss.total` over all ranks that have different tokens:
those of `Mesh.sequence` and `Mesh.data`. From this follows what an objective has to do:

- **Terms of single tokens** need nothing: each rank has those of its own tokens. This also holds
  for a term that a sum over the sample goes into, such as a token's distance from the mean.
- **Terms of whole samples**, which every sequence rank computes from the same sums, go through
  `counted_once`; so do such numbers in `Loss.sums`.
- **Tensor-parallel ranks** have the same tokens and compute the same loss, and nothing is summed
  over them: an objective need not know of them.

Gradients of a sum reach each token once, whatever the loss does with the sum. The ranks of
`Mesh.sequence` must all call these functions, equally often and in the same order, and backward
runs through them on every rank.

Shapes:
    T own  tokens of this rank, all of the batch's where they are not divided
    N  samples
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bc2.data.loader import IGNORED, SAMPLE, Batch
from bc2.model.transfer import to_device
from bc2.parallel.mesh import Group
from bc2.parallel.own_batch import OwnBatch
from bc2.parallel.sequence import own_tokens


def sum_by_sample(values: Tensor, batch: Batch) -> Tensor:
    """The sum over each sample's tokens: [T own, ...] -> [N, ...], the same on all sequence ranks.

    In fp64, so that sums of long samples keep their digits when two of them are compared.

    Args:
        values: of any kind of number; tokens that do not count have 0.
        batch: as the objective is given it. A token's sample is its row, or what the token field
            `SAMPLE` says.

    Raises:
        ValueError: there are not as many values as tokens.
    """
    places = _places(batch, values.device)
    if len(values) != len(places):
        raise ValueError(f"{len(values)} values for {len(places)} tokens")
    wide = values.double()
    sums = wide.new_zeros(batch.num_samples + 1, *values.shape[1:]).index_add(0, places, wide)[:-1]
    group = _sequence(batch)
    if group.size == 1:
        return sums
    found: Tensor = _SumOverRanks.apply(sums, group)  # type: ignore[no-untyped-call]
    return found


def mean_by_sample(values: Tensor, batch: Batch) -> Tensor:
    """The mean over each sample's supervised tokens: [T own] -> [N]; 0 where it has none."""
    known = to_device(torch.from_numpy(batch.labels.reshape(-1) != IGNORED), values.device)
    # Not by a product: what is there for another token may be infinite.
    kept = torch.where(known, values.double(), 0.0)
    sums, counts = sum_by_sample(torch.stack([kept, known.double()], dim=1), batch).unbind(1)
    return sums / counts.clamp(min=1)


def to_tokens(values: Tensor, batch: Batch) -> Tensor:
    """Each sample's value at each of its tokens: [N, ...] -> [T own, ...]; 0 where none is."""
    none = values.new_zeros(1, *values.shape[1:])
    return torch.cat([values, none]).index_select(0, _places(batch, values.device))


def counted_once(value: Tensor, batch: Batch) -> Tensor:
    """This rank's share of a number that all sequence ranks have: the shares sum up to it."""
    size = _sequence(batch).size
    return value if size == 1 else value / size


def _sequence(batch: Batch) -> Group:
    return batch.sequence if isinstance(batch, OwnBatch) else Group()


def _places(batch: Batch, device: torch.device) -> Tensor:
    """The sample of each of this rank's tokens, N for none: int64 [T own]."""
    if SAMPLE in batch.token_fields:
        ids = batch.token_fields[SAMPLE].reshape(-1).astype(np.int64)
    else:
        rows, length = batch.tokens.shape
        ids = np.repeat(np.arange(rows), length)[own_tokens(rows * length, _sequence(batch))]
    return to_device(torch.from_numpy(np.where(ids == IGNORED, batch.num_samples, ids)), device)


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks. Each rank's loss may depend on it, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.all_reduce(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.all_reduce(grad.clone(memory_format=torch.contiguous_format)), None
