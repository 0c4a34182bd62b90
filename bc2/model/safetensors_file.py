"""A safetensors file, read once from front to back.

It is the length of a header (8 bytes), the header (JSON) and the tensors, one after another
without gaps. So what takes the bytes in their order, such as a digest, needs no reading of its
own, and of a tensor that goes elsewhere no more than a chunk is held.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bc2.errors import IntegrityError
from bc2.files import CHUNK

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

#: Bytes of a tensor that are passed on at once: so many that threads pay.
PASSED_ON = 16 << 20

#: Bytes. safetensors takes up to 100 MB; that of 100,000 tensors has 12 MB, and of a longer one
#: gigabytes of memory would be made.
LONGEST_HEADER = 16 << 20

#: What bytes that are no header can raise when they are read as one.
NO_HEADER = (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class TensorSpan:
    """Which bytes of a file are a tensor, by its header."""

    dtype: str
    """A key of `DTYPES`."""
    shape: tuple[int, ...]
    first: int
    """Bytes from the end of the header."""
    end: int


def tensor_spans(entries: Mapping[str, Any]) -> dict[str, TensorSpan]:
    """The tensors in a header's entries, in the order of their bytes. Raises: see `NO_HEADER`."""
    found = {}
    at = 0
    tensors = [(name, entry) for name, entry in entries.items() if name != "__metadata__"]
    for name, entry in sorted(tensors, key=lambda tensor: tuple(tensor[1]["data_offsets"])):
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        first, end = entry["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(f"{name} has the unknown dtype {dtype}")
        if not all(type(n) is int and n >= 0 for n in (*shape, first, end)):
            raise ValueError(f"{name} has no shape or place")
        if first != at or end - first != prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"{name} is not where it must be")
        found[name] = TensorSpan(dtype, shape, first, end)
        at = end
    return found


def _each_once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises: ValueError: it has a name twice, and readers differ in which."""
    found = dict(entries)
    if len(found) != len(entries):
        names = [name for name, _ in entries]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is in it twice")
    return found


class SafetensorsReader:
    """One reading of a safetensors file: first its header, and then its tensors.

    Args:
        stream: the file's bytes from the first one on. Those of the header are taken at once.
        path: the file itself, for its size, and for errors.

    Raises:
        IntegrityError: it is no complete safetensors file.
        OSError: the system refused to read it.
    """

    def __init__(self, stream: RawIOBase, path: Path):
        self.path = path
        self._stream = stream
        self.spans = self._read_header(path.stat().st_size)
        """The file's tensors by name, in the order of their bytes."""

    def _read_header(self, total: int) -> dict[str, TensorSpan]:
        if total < 8:
            raise self._incomplete(f"it has {total} bytes")
        (length,) = struct.unpack("<Q", self._take(8))
        if length > min(total - 8, LONGEST_HEADER):
            raise self._incomplete(f"a header of {length:,} bytes cannot be in it")
        try:
            header = json.loads(self._take(length).decode(), object_pairs_hook=_each_once)
            spans = tensor_spans(header)
        except NO_HEADER as error:
            raise self._incomplete(f"its header cannot be read: {error!r}") from error
        end = 8 + length + max((span.end for span in spans.values()), default=0)
        if total != end:
            raise self._incomplete(f"it has {total:,} bytes, and its header says {end:,}")
        return spans

    def tensors(
        self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Name and content of each tensor, in the order of the file; only once.

        Args:
            device: where they go.
            dtype: what they are turned into; as stored if None.

        Raises:
            IntegrityError: the file became shorter.
            OSError: the system refused to read it.
        """
        room = torch.empty(PASSED_ON, dtype=torch.uint8, device="cpu")
        for name, span in self.spans.items():
            stored = DTYPES[span.dtype]
            made = torch.empty(span.shape, dtype=dtype or stored, device=device)
            if made.device.type == "cpu" and made.dtype == stored:
                self._fill(_bytes_of(made))
            else:
                self._pass_on(made.reshape(-1), room.view(stored))
            yield name, made

    def _pass_on(self, flat: Tensor, room: Tensor) -> None:
        """Fill a tensor that is elsewhere, or of another dtype, by way of `room`."""
        for first in range(0, len(flat), len(room)):
            part = flat[first : first + len(room)]
            self._fill(_bytes_of(room[: len(part)]))
            part.copy_(room[: len(part)])

    def _take(self, size: int) -> bytearray:
        taken = bytearray(size)
        self._fill(memoryview(taken))
        return taken

    def _fill(self, room: memoryview) -> None:
        while room:
            # No more at once than a core's cache holds until the digest has taken it.
            size = self._stream.readinto(room[:CHUNK])
            if not size:
                raise self._incomplete("it became shorter while it was read")
            room = room[size:]

    def _incomplete(self, why: str) -> IntegrityError:
        return IntegrityError(f"not a complete safetensors file: {why}", where=str(self.path))


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the host, to be written to."""
    view: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return view
