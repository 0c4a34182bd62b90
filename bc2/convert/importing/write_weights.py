"""The weights of another tool's files, written under bc2's names; bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bc2.convert.stored_tensor import StoredTensor
from bc2.convert.tensor_files import write_tensors
from bc2.errors import DataError

#: Of each type the integers of its size, and the bits of its exponent: all set, it is no number.
_EXPONENTS: dict[str, tuple[np.dtype[Any], int]] = {
    "F32": (np.dtype("<u4"), 0x7F80_0000),
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F16": (np.dtype("<u2"), 0x7C00),
}


def write_weights(
    folder: Path,
    parts: Mapping[str, Sequence[StoredTensor]],
    seen: Callable[[int], object] = lambda count: None,
) -> dict[str, str]:
    """Write tensors as ``model.safetensors``, or several files with an index; and sync them.

    Args:
        parts: by name, the tensors whose rows one after the other are written.
        seen: told how many bytes were written, again and again.

    Returns:
        By name, the hex SHA-256 of each file of weights.

    Raises:
        DataError: a tensor holds what is no finite number.
        OSError: the disk is full: found before anything is copied.
    """
    tensors = {name: (of[0].dtype, _shape(of)) for name, of in parts.items()}
    return write_tensors(folder, tensors, lambda name: _finite(name, parts[name]), seen)


def _shape(parts: Sequence[StoredTensor]) -> tuple[int, ...]:
    rows = sum(part.shape[0] for part in parts)
    return (rows, *parts[0].shape[1:])


def _finite(name: str, parts: Sequence[StoredTensor]) -> Iterator[bytes]:
    """The bytes of a tensor, which must be finite numbers."""
    for part in parts:
        integers, exponent = _EXPONENTS[part.dtype]
        for data in part.chunks():
            bits = np.frombuffer(data, integers)
            if ((bits & exponent) == exponent).any():
                raise DataError(
                    f"{name} holds NaN or infinity",
                    where=str(part.path),
                    todo="fetch the model again; if it is so there, it cannot be used",
                )
            yield data
