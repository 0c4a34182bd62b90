"""Where tensors lie in a file, by its header: no weights are read to know it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bc2.errors import DataError, IntegrityError, from_os_error
from bc2.files import CHUNK
from bc2.model.safetensors_file import DTYPES, SafetensorsReader


@dataclass(frozen=True)
class StoredTensor:
    """The bytes of a tensor in a file, in the order of its elements."""

    path: Path
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def chunks(self) -> Iterator[bytes]:
        """The bytes, no more than `CHUNK` at once.

        Raises:
            DataError: the file became shorter.
            OSError: the system refused to read it.
        """
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            left = self.size
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    raise DataError("became shorter while it was read", where=str(self.path))
                yield data
                left -= len(data)

    def rows(self, first: int, count: int) -> Tensor:
        """Some rows, copied from the file: [count, ...] in the type that they are stored in.

        Raises:
            DataError: the file became shorter.
            OSError: the system refused to read it.
        """
        made = torch.empty((count, *self.shape[1:]), dtype=DTYPES[self.dtype])
        room = made.reshape(-1).view(torch.uint8).numpy().data
        at = self.offset + first * prod(self.shape[1:]) * made.itemsize
        with self.path.open("rb", buffering=0) as file:
            while room:
                # read, not mapped: a mapping of a large file would count as memory that is used.
                taken = os.preadv(file.fileno(), [room], at)
                if not taken:
                    raise DataError("became shorter while it was read", where=str(self.path))
                room, at = room[taken:], at + taken
        return made


def safetensors_of(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file. Raises: DataError: it is none, or incomplete."""
    try:
        with path.open("rb", buffering=0) as file:
            reader = SafetensorsReader(file, path)
            begin = file.tell()
    except IntegrityError as error:
        raise DataError(error.what, where=error.where, todo="fetch the file again") from None
    except OSError as error:
        raise from_os_error(error, "reading a model") from error
    return {
        name: StoredTensor(path, span.dtype, span.shape, begin + span.first)
        for name, span in reader.spans.items()
    }
