"""Weights written as bc2 stores them, from front to back: no tensor is ever held as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bc2.convert.stored_tensors import StoredTensor
from bc2.errors import DataError
from bc2.files import sync_file, write_at, write_durably
from bc2.parallel.state import FILE_BYTES, TensorFile, index_of, plan_files

_STEM = "model"

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
    limit: int = FILE_BYTES,
) -> dict[str, str]:
    """Write tensors as ``model.safetensors``, or several files with an index; and sync them.

    Args:
        parts: by name, the tensors whose rows one after the other are written.
        seen: told how many bytes were written, again and again.
        limit: bytes of tensors in a file, unless one is larger.

    Returns:
        By name, the hex SHA-256 of each file of weights.

    Raises:
        DataError: a tensor holds what is no finite number.
        OSError: the disk is full: found before anything is copied.
    """
    tensors = {name: (of[0].dtype, _shape(of)) for name, of in parts.items()}
    return write_tensors(folder, tensors, lambda name: _finite(name, parts[name]), seen, limit)


def write_tensors(
    folder: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    pieces: Callable[[str], Iterable[bytes | memoryview]],
    seen: Callable[[int], object] = lambda count: None,
    limit: int = FILE_BYTES,
) -> dict[str, str]:
    """The same of tensors by type and shape, whose bytes `pieces` gives one after the other."""
    files = plan_files(_STEM, tensors, limit)
    for name, file in files.items():
        file.create(folder / name)
    if len(files) > 1:
        write_durably(folder / f"{_STEM}.safetensors.index.json", index_of(files))
    return {name: _write(folder / name, file, pieces, seen) for name, file in files.items()}


def _shape(parts: Sequence[StoredTensor]) -> tuple[int, ...]:
    rows = sum(part.shape[0] for part in parts)
    return (rows, *parts[0].shape[1:])


def _write(
    path: Path,
    file: TensorFile,
    pieces: Callable[[str], Iterable[bytes | memoryview]],
    seen: Callable[[int], object],
) -> str:
    digest = hashlib.sha256(file.header)
    at = len(file.header)
    with path.open("r+b", buffering=0) as out:
        for name in sorted(file.places, key=lambda name: file.places[name].offset):
            for data in pieces(name):
                write_at(out.fileno(), memoryview(data), at)
                at += len(data)
                digest.update(data)
                seen(len(data))
    sync_file(path)
    return digest.hexdigest()


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
