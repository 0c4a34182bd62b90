"""A plan's tensors written as safetensors, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan, TargetTensor
from bc2.convert.exporting.target_rows import target_rows
from bc2.convert.tensor_files import planned_files, write_tensors


def planned_sizes(tensors: Sequence[TargetTensor], limit: int) -> dict[str, int]:
    """Bytes of each file of weights by name, an index of several included.

    Args:
        limit: bytes of tensors in a file, unless one is larger.
    """
    return planned_files({one.name: (one.dtype, one.shape) for one in tensors}, limit)


def write_safetensors(
    folder: Path, source: SourceModel, plan: ExportPlan, seen: Callable[[int], object]
) -> dict[str, str]:
    """Write a plan's weights: an `ExportPlan.write`.

    Returns:
        The hex SHA-256 of each file of weights by name.

    Raises:
        DataError: a number is not finite, or too large for its type.
        OSError: the disk is full.
    """
    by_name = {one.name: one for one in plan.tensors}

    def pieces(name: str) -> Iterator[memoryview]:
        for rows in target_rows(source, by_name[name]):
            yield rows.reshape(-1).view(torch.uint8).numpy().data

    tensors = {one.name: (one.dtype, one.shape) for one in plan.tensors}
    return write_tensors(folder, tensors, pieces, seen, plan.limit)
