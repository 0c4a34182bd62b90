"""The rows of a target's tensor: read from the checkpoint, changed, and rounded to its type."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import RowChange, TargetTensor
from bc2.convert.ordered_work import in_order
from bc2.errors import DataError
from bc2.model.heads import normalize_rows
from bc2.model.safetensors_file import DTYPES

#: Numbers that are read at once.
_AT_ONCE = 1 << 20


def _to_unit_length(rows: Tensor) -> Tensor:
    return normalize_rows(rows.float())


#: A NormHead's rows as plain heads have them (Baichuan 2, section 2.5).
UNIT_ROWS = RowChange(1, _to_unit_length)


def target_rows(source: SourceModel, target: TargetTensor) -> Iterator[Tensor]:
    """A tensor in pieces of whole rows, each contiguous and in the target's type.

    A GGUF block type is not computed here: for those the rows come in fp32.

    Raises:
        DataError: a number is not finite, or too large for the type.
    """
    block = target.change.block if target.change else 1
    step = max(1, _AT_ONCE // (prod(target.shape[1:]) * block)) * block

    def piece(first: int) -> Tensor:
        return _piece(source, target, first, min(step, target.shape[0] - first))

    return in_order(piece, range(0, target.shape[0], step))


def _piece(source: SourceModel, target: TargetTensor, first: int, count: int) -> Tensor:
    read = source.weights[target.source].rows(target.first + first, count)
    changed = target.change.apply(read) if target.change else read
    rounded = changed.to(DTYPES.get(target.dtype, torch.float32)).contiguous()
    # A sum is quick, and nothing but an overflow is infinite in it alone.
    finite = torch.isfinite(rounded.sum(dtype=torch.float32))
    if not finite and not torch.isfinite(rounded).all():
        raise _not_finite(source, target, read)
    return rounded


def _not_finite(source: SourceModel, target: TargetTensor, read: Tensor) -> DataError:
    path = str(source.weights[target.source].path)
    if not torch.isfinite(read).all():
        return DataError(
            f"{target.source} holds NaN or infinity",
            where=path,
            todo="take a checkpoint from before the training diverged",
        )
    largest = float(read.abs().max())
    return DataError(
        f"{target.source} holds {largest:g}, which is too large for {target.dtype}",
        where=path,
        todo="convert with --dtype bf16 or fp32",
    )
