"""Where the tensors of a model's files lie, by their headers: no weights are read to know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

from bc2.convert.model_folder import ModelFolder
from bc2.convert.torch_file import torch_tensors
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


def open_tensors(folder: ModelFolder) -> dict[str, StoredTensor]:
    """All tensors of a model's folder by name.

    Raises:
        DataError: a file is missing or broken, does not hold what the index says, or holds a
            tensor that another one holds too.
    """
    paths, index = folder.weights()
    found: dict[str, StoredTensor] = {}
    for path in paths:
        tensors = torch_tensors_of(path) if path.suffix == ".bin" else safetensors_of(path)
        twice = found.keys() & tensors.keys()
        if twice:
            name = min(twice)
            raise DataError(f"{name} is in {found[name].path.name} too", where=str(path))
        found.update(tensors)
    for name, file in (index or {}).items():
        if name not in found:
            raise DataError(f"{name} is not in {file}, as the index says", where=str(folder.path))
        if found[name].path.name != file:
            raise DataError(
                f"{name} is in {found[name].path.name}, and the index says {file}",
                where=str(folder.path),
            )
    if index is not None and found.keys() - index.keys():
        name = min(found.keys() - index.keys())
        raise DataError(
            f"{name} is in {found[name].path.name}, and the index does not know it",
            where=str(folder.path),
        )
    return found


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


def torch_tensors_of(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of `torch.save`, read without running what it says.

    Raises:
        DataError: it is none, or holds other things than tensors.
    """
    try:
        tensors = torch_tensors(path)
    except OSError as error:
        raise from_os_error(error, "reading a model") from error
    found = {}
    for name, (tensor, offset) in tensors.items():
        dtype = next((key for key, one in DTYPES.items() if one == tensor.dtype), None)
        if dtype is None:
            raise DataError(f"{name} is of the unknown type {tensor.dtype}", where=str(path))
        found[name] = StoredTensor(path, dtype, tuple(tensor.shape), offset)
    with suppress(OSError):
        end = path.stat().st_size
        for name, one in found.items():
            if one.offset + one.size > end:
                raise DataError(f"{name} ends behind the file's end", where=str(path))
    return found
