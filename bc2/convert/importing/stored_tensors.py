"""Where the tensors of a model's files lie, by their headers: no weights are read to know it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bc2.convert.importing.model_folder import ModelFolder
from bc2.convert.importing.torch_file import torch_tensors
from bc2.convert.stored_tensor import StoredTensor, safetensors_of
from bc2.errors import DataError, from_os_error
from bc2.model.safetensors_file import DTYPES


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
