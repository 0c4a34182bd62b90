"""Files of `torch.save` (``.bin``): where their tensors lie, without running what they say.

Such a file is a zip archive: a pickle that says names, types and shapes, and the numbers as they
are in memory. The pickle may name what tensors are made of, and nothing else. It is read by torch's
own reader with ``weights_only``, which calls nothing else either, and with tensors that have no
memory, so that nothing is read of the numbers.
"""

from __future__ import annotations

import logging
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bc2.errors import DataError

#: Bytes of the largest pickle that is read: one of 100,000 tensors has 20 MB.
_LARGEST_PICKLE = 100_000_000

#: A member's local header: 30 bytes, of which the last four are the lengths of name and extra.
_LOCAL_HEADER = struct.Struct("<26xHH")

#: What the pickle may name: tensors and their parts. torch's reader would also make a ``bytearray``
#: of any size.
_TENSOR_PARTS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)"
    r"|torch ([A-Z]\w*Storage|[a-z]\w*)|torch\.storage UntypedStorage"
)

#: What torch raises for files that it cannot read, or does not trust.
_UNREADABLE = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, AssertionError,
    OverflowError,
)  # fmt: skip

#: What zipfile raises for archives that are broken or encrypted; ValueError for names and places
#: beyond reach.
_NO_ARCHIVE = (zipfile.BadZipFile, struct.error, RuntimeError, ValueError, EOFError)


def torch_tensors(path: Path) -> dict[str, tuple[Tensor, int]]:
    """By name, each tensor (of no memory) and where its first number lies, in bytes.

    Raises:
        DataError: the file is none, or holds other things than tensors by name.
        OSError: the system refused to read it.
    """
    members = _members(path)
    state = _load(path)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise DataError("holds no tensors by name", where=str(path))
    found: dict[str, tuple[Tensor, int]] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise DataError(f"{name} is no tensor", where=str(path))
        if not tensor.is_contiguous():
            raise DataError(
                f"the numbers of {name} do not lie in their order",
                where=str(path),
                todo="save it again with transformers, as safetensors",
            )
        storage = tensor.untyped_storage()
        at = getattr(storage, "_checkpoint_offset", None)
        if members.get(at, -1) < storage.nbytes():
            raise DataError(f"{name} is not where the file says", where=str(path))
        assert isinstance(at, int)
        found[name] = tensor, at + int(tensor.storage_offset()) * tensor.element_size()
    return found


def _members(path: Path) -> dict[int | None, int]:
    """The sizes of the archive's members by where their bytes begin.

    Raises:
        DataError: it is no archive, or one that is compressed.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            _check_members(archive, path)
            _check_order(archive, path)
            _check_pickles(archive, path)
            return {_begin(file.seek(one.header_offset), file.read(30)): one.file_size
                    for one in archive.infolist()}  # fmt: skip
    except _NO_ARCHIVE as error:
        raise DataError(
            f"no file of torch.save in its layout since torch 1.6: {error}",
            where=str(path),
            todo="fetch it again; an older one: save it with transformers, as safetensors",
        ) from None


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises: DataError: a member is not in the file as it is."""
    for member in archive.infolist():
        if member.header_offset < 0:
            raise DataError(f"{member.filename} begins before it", where=str(path))
        if member.compress_type != zipfile.ZIP_STORED:
            raise DataError(f"{member.filename} is compressed in it", where=str(path))


def _check_order(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises: DataError: the numbers were written by a machine with another order of bytes."""
    for member in archive.infolist():
        if member.filename.endswith("/byteorder") and member.file_size < 16:
            order = archive.read(member).decode(errors="replace")
            if order != sys.byteorder:
                raise DataError(f"its numbers are {order}-endian", where=str(path))


def _check_pickles(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises: DataError: a pickle is too large, or names other things than tensors."""
    # torch takes the name in any case, and one of several.
    for member in archive.infolist():
        if not member.filename.lower().endswith("data.pkl"):
            continue
        if member.file_size > _LARGEST_PICKLE:
            raise DataError(f"{member.filename} is too large to be one", where=str(path))
        for operation, said, _ in pickletools.genops(archive.read(member)):
            if operation.name == "GLOBAL" and _TENSOR_PARTS.fullmatch(str(said)):
                continue
            if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                raise _refused(path, f"It names {said or 'something by what is computed'}.")


def _refused(path: Path, why: str) -> DataError:
    return DataError(
        f"refused: it would run code or make other things than tensors. {why}".strip(),
        where=str(path),
        todo="trust nothing of it; take safetensors of the same model",
    )


def _begin(at: int, header: bytes) -> int:
    """Where the bytes of a member begin, by the header before it."""
    name, extra = _LOCAL_HEADER.unpack(header)
    return at + 30 + int(name) + int(extra)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Without what torch logs of an error beside raising it."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _load(path: Path) -> object:
    """What the pickle says, with tensors of no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with _silent(logging.getLogger("torch._subclasses.fake_tensor")), FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = next((line for line in str(error).splitlines() if "Unsupported" in line), "")
        raise _refused(path, said.strip()) from None
    except _UNREADABLE as error:
        first = str(error).splitlines()[:1]
        raise DataError(
            f"cannot be read as a file of torch.save: {''.join(first)}",
            where=str(path),
            todo="fetch it again",
        ) from None
