"""Tensors of written files, found by headers that are read here once more.

No code of the writers is used: a mistake of theirs would be made here too.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bc2.errors import RunFailed

#: Bytes of a number; of Q8_0 a block of 32 numbers has 34.
_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
BLOCK, BLOCK_BYTES = 32, 34

#: GGUF's numbers of types, and of kinds of values with struct's letters.
_GGUF_TYPES = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
_GGUF_KINDS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class WrittenTensor:
    """The bytes of a tensor in a file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    """Rows first."""
    offset: int

    @property
    def row_bytes(self) -> int:
        """Of all numbers of a row."""
        width = prod(self.shape[1:])
        if self.dtype == "Q8_0":
            return width // BLOCK * BLOCK_BYTES
        return width * _SIZES[self.dtype]

    def rows(self, first: int, count: int) -> npt.NDArray[np.uint8]:
        """The bytes of some rows.

        Raises:
            RunFailed: the file ends before.
        """
        size = count * self.row_bytes
        with self.path.open("rb", buffering=0) as file:
            data = bytearray(size)
            view, at = memoryview(data), self.offset + first * self.row_bytes
            while view:
                taken = os.preadv(file.fileno(), [view], at)
                if not taken:
                    raise RunFailed(f"{self.path.name} ends within a tensor")
                view, at = view[taken:], at + taken
        return np.frombuffer(data, np.uint8)


def written_tensors(folder: Path, names: Sequence[str]) -> tuple[dict[str, WrittenTensor], str]:
    """The tensors of some files of a folder, and the architecture that a GGUF file names.

    Raises:
        RunFailed: a file is not what its name says, or two hold the same tensor.
    """
    found: dict[str, WrittenTensor] = {}
    architecture = ""
    for name in names:
        path = folder / name
        try:
            if name.endswith(".safetensors"):
                more = _safetensors(path)
            elif name.endswith(".gguf"):
                more, facts = _gguf(path)
                architecture = str(facts["general.architecture"])
            else:
                continue  # an index
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise RunFailed(f"{name} has no readable header: {error}") from None
        if twice := found.keys() & more.keys():
            raise RunFailed(f"{min(twice)} is in two files")
        found |= more
    return found, architecture


def _safetensors(path: Path) -> dict[str, WrittenTensor]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: Mapping[str, Any] = json.loads(file.read(size))
    return {
        name: WrittenTensor(
            path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _gguf(path: Path) -> tuple[dict[str, WrittenTensor], dict[str, Any]]:
    with path.open("rb") as file:
        magic, version, tensors, count = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"it begins with {magic!r}, version {version}")
        facts = {}
        for _ in range(count):
            name = _value(file, _STRING)
            facts[name] = _value(file, _number(file, "I"))
        places = {}
        for _ in range(tensors):
            name = _value(file, _STRING)
            dims = [_number(file, "Q") for _ in range(_number(file, "I"))]
            dtype = _GGUF_TYPES[_number(file, "I")]
            places[name] = tuple(reversed(dims)), dtype, _number(file, "Q")
        end = file.tell()
    align = int(facts.get("general.alignment", 32))
    begin = -(-end // align) * align
    return {
        name: WrittenTensor(path, dtype, shape, begin + offset)
        for name, (shape, dtype, offset) in places.items()
    }, facts


def _number(file: BinaryIO, letter: str) -> Any:
    return struct.unpack(f"<{letter}", file.read(struct.calcsize(f"<{letter}")))[0]


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return file.read(_number(file, "Q")).decode("utf-8", "replace")
    if kind == _ARRAY:
        inner, count = _number(file, "I"), _number(file, "Q")
        return [_value(file, inner) for _ in range(count)]
    return _number(file, _GGUF_KINDS[kind])


def gguf_facts(path: Path) -> dict[str, Any]:
    """What a GGUF file says beside its tensors, by key."""
    return _gguf(path)[1]
