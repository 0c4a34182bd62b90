"""Files of weights written from front to back: no tensor is ever held as a whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bc2.convert.ordered_work import beside
from bc2.files import sync_file, write_at, write_durably
from bc2.parallel.state import FILE_BYTES, TensorFile, index_of, plan_files

_STEM = "model"
_INDEX = f"{_STEM}.safetensors.index.json"

#: Bytes after which the disk is asked to keep what was written: so it works all the time.
_SYNCED = 256 << 20


def planned_files(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], limit: int = FILE_BYTES
) -> dict[str, int]:
    """Bytes of each file that `write_tensors` writes, by name."""
    files = plan_files(_STEM, tensors, limit)
    sizes = {name: file.size for name, file in files.items()}
    return {**sizes, _INDEX: len(index_of(files))} if len(files) > 1 else sizes


def write_tensors(
    folder: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    pieces: Callable[[str], Iterable[bytes | memoryview]],
    seen: Callable[[int], object] = lambda count: None,
    limit: int = FILE_BYTES,
) -> dict[str, str]:
    """Write tensors as ``model.safetensors``, or several files with an index; and sync them.

    Args:
        tensors: type and shape by name.
        pieces: the bytes of a tensor, one piece after the other.
        seen: told how many bytes were written, again and again.
        limit: bytes of tensors in a file, unless one is larger.

    Returns:
        By name, the hex SHA-256 of each file of weights.

    Raises:
        OSError: the disk is full: found before anything is copied.
    """
    files = plan_files(_STEM, tensors, limit)
    for name, file in files.items():
        file.create(folder / name)
    if len(files) > 1:
        write_durably(folder / _INDEX, index_of(files))
    return {name: _write(folder / name, file, pieces, seen) for name, file in files.items()}


def _write(
    path: Path,
    file: TensorFile,
    pieces: Callable[[str], Iterable[bytes | memoryview]],
    seen: Callable[[int], object],
) -> str:
    digest = hashlib.sha256(file.header)
    at = len(file.header)
    kept = at
    with (
        path.open("r+b", buffering=0) as out,
        beside(digest.update) as take,
        beside(os.fdatasync) as keep,
    ):
        for name in sorted(file.places, key=lambda name: file.places[name].offset):
            for data in pieces(name):
                take(data)
                write_at(out.fileno(), memoryview(data), at)
                at += len(data)
                seen(len(data))
                if at - kept >= _SYNCED:
                    keep(out.fileno())
                    kept = at
    sync_file(path)
    return digest.hexdigest()
