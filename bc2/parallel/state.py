"""Training state on disk, the same bytes whatever the layout that wrote it.

A safetensors file holds whole tensors, at offsets that follow from their names and shapes
alone. So all ranks write what they hold at the same time, each to its own places, and the
files are those that one process would have written, byte for byte. A rank of any other layout
maps the files and reads the slices that it needs: nothing is converted.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bc2.errors import IntegrityError
from bc2.files import write_durably, writing_in_place
from bc2.model.safetensors_file import DTYPES, NO_HEADER, tensor_spans
from bc2.parallel.sharding import TensorShard

#: Bytes of tensors in a file, unless one is larger: files are digested side by side.
FILE_BYTES = 8 << 30

#: NumPy has no bfloat16: its bits.
_BF16 = np.dtype(np.uint16)
#: In the order in which safetensors lays tensors out: the most bits to a number first.
_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype(np.int64),
    "F32": np.dtype(np.float32),
    "BF16": _BF16,
    "F16": np.dtype(np.float16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
_NAMES = {DTYPES[name]: name for name in _DTYPES}
_ORDER = {name: place for place, name in enumerate(_DTYPES)}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Fragment:
    """A contiguous piece of a tensor's part that one rank holds."""

    name: str
    part: TensorShard
    """What a tensor-parallel rank has of the tensor."""
    first: int
    """Where in that part, flattened, the piece begins."""
    data: Tensor
    """[n], in host memory."""


class StateSource(Protocol):
    """Where an engine reads tensors from."""

    def __contains__(self, name: object) -> bool: ...

    def read(self, name: str, part: TensorShard, first: int, count: int) -> Tensor:
        """[count] numbers of a part, flattened, from `first` on; called in the model's order.

        They may be of another type than the tensor that they are for, such as bf16.
        """


class ShapedSource(StateSource, Protocol):
    """A source that knows everything that it has."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each whole tensor."""


@dataclass
class HeldTensors:
    """What a rank holds of some tensors, in host memory: a `StateSource` for the same layout."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of all whole tensors, also of those of which this rank holds nothing."""
    fragments: list[Fragment] = field(default_factory=list)
    _by_name: dict[str, Fragment] = field(default_factory=dict, init=False, repr=False)

    def add(self, name: str, part: TensorShard, first: int, data: Tensor | None) -> None:
        """Add a tensor; None where this rank holds nothing of it."""
        self.shapes[name] = part.shape
        if data is not None and data.numel():
            self._by_name[name] = Fragment(name, part, first, data.reshape(-1))
            self.fragments.append(self._by_name[name])

    def clear(self) -> None:
        """Hold nothing any more."""
        self.shapes.clear()
        self.fragments.clear()
        self._by_name.clear()

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def read(self, name: str, part: TensorShard, first: int, count: int) -> Tensor:
        held = self._by_name.get(name)
        begin = first - held.first if held else 0
        if held is None or held.part != part or not 0 <= begin <= len(held.data) - count:
            raise KeyError(f"{name} is not held here")
        return held.data[begin : begin + count]

    def files(self, stem: str) -> dict[str, TensorFile]:
        """The files for the tensors of all ranks: see `plan_files`."""
        dtypes = {f.name: _NAMES[f.data.dtype] for f in self.fragments}
        # What this rank has nothing of is a parameter or a moment.
        return plan_files(stem, {n: (dtypes.get(n, "F32"), s) for n, s in self.shapes.items()})

    def whole(self, name: str) -> Tensor:
        """A tensor of which this rank has everything."""
        shape = self.shapes[name]
        return self.read(name, TensorShard(shape), 0, prod(shape)).reshape(shape)


# -- places ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor lies in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    """Bytes from the file's beginning."""


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file: its first bytes, and where its tensors are."""

    header: bytes
    places: Mapping[str, TensorLocation]
    size: int

    @classmethod
    def plan(cls, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> TensorFile:
        """The file of tensors by name (type and shape), laid out as safetensors itself does."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in sorted(tensors, key=lambda n: (_ORDER[tensors[n][0]], n)):
            dtype, shape = tensors[name]
            end = at + prod(shape) * _DTYPES[dtype].itemsize
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        header = struct.pack("<Q", len(text)) + text
        return cls(header, _places(entries, len(header)), len(header) + at)

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read the header of an existing file.

        Raises:
            IntegrityError: it is no complete safetensors file of such tensors.
        """
        total = path.stat().st_size
        try:
            with path.open("rb") as stream:
                size = stream.read(8)
                (length,) = struct.unpack("<Q", size)
                text = stream.read(min(length, total))
            if len(text) < length:
                raise ValueError("its header is cut off")
            header = size + text
            places = _places(json.loads(text), len(header))
        except NO_HEADER as error:
            raise IntegrityError(f"not a safetensors file: {error!r}", where=str(path)) from error
        ends = [p.offset + prod(p.shape) * p.dtype.itemsize for p in places.values()]
        if total != max(ends, default=len(header)):
            raise IntegrityError("not a complete safetensors file", where=str(path))
        return cls(header, places, total)

    def create(self, path: Path) -> None:
        """Create the file at its full size: the header, and zeros.

        Raises:
            OSError: the disk is full; found here, for a write to a mapping cannot say so.
        """
        write_durably(path, self.header)
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, self.size)

    def arrays(self, path: Path, mode: str) -> MappedTensors:
        return MappedTensors(self, np.memmap(path, np.uint8, mode))  # type: ignore[call-overload]


@dataclass(frozen=True)
class MappedTensors:
    """A file's tensors as arrays over its bytes."""

    file: TensorFile
    raw: Array

    def __getitem__(self, name: str) -> Array:
        place = self.file.places[name]
        size = prod(place.shape) * place.dtype.itemsize
        return self.raw[place.offset : place.offset + size].view(place.dtype).reshape(place.shape)


def _places(entries: Mapping[str, Any], begin: int) -> dict[str, TensorLocation]:
    """The locations in a header's entries, which must be contiguous. Raises: see `NO_HEADER`."""
    found = {}
    for name, span in tensor_spans(entries).items():
        if span.dtype not in _DTYPES:
            raise ValueError(f"{name} is {span.dtype}, not one of {', '.join(_DTYPES)}")
        found[name] = TensorLocation(span.shape, _DTYPES[span.dtype], begin + span.first)
    return found


def runs(whole: Array, part: TensorShard, first: int, count: int) -> Iterator[tuple[Array, slice]]:
    """Views of a whole tensor that together are a piece of a part, each with its slice of it."""
    if part.dim is None:
        yield whole.reshape(-1)[first : first + count], slice(0, count)
        return
    if part.dim == 0:
        yield from _row_runs(whole, part, first, count)
        return
    ((begin, end),) = part.runs
    columns, width = whole[:, begin:end], end - begin
    at = first
    while at < first + count:
        row, column = divmod(at, width)
        rows = (first + count - at) // width if column == 0 else 0
        if rows:  # whole rows at once
            view, size = columns[row : row + rows], rows * width
        else:
            size = min(width - column, first + count - at)
            view = columns[row, column : column + size]
        yield view, slice(at - first, at - first + size)
        at += size


def _row_runs(
    whole: Array, part: TensorShard, first: int, count: int
) -> Iterator[tuple[Array, slice]]:
    width = prod(part.shape[1:])
    flat = whole.reshape(-1)
    before = 0
    for begin, end in part.runs:
        size = (end - begin) * width
        low, high = max(first, before), min(first + count, before + size)
        if low < high:
            shift = begin * width - before
            yield flat[low + shift : high + shift], slice(low - first, high - first)
        before += size


# -- sets of files --------------------------------------------------------------------------


def plan_files(
    stem: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], limit: int = FILE_BYTES
) -> dict[str, TensorFile]:
    """By file name. One file ``STEM.safetensors``, or several as Hugging Face names them."""
    groups: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    held = 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * _DTYPES[dtype].itemsize
        if groups[-1] and held + size > limit:
            groups.append({})
            held = 0
        groups[-1][name] = (dtype, shape)
        held += size
    if len(groups) == 1:
        return {f"{stem}.safetensors": TensorFile.plan(groups[0])}
    total = len(groups)
    return {
        f"{stem}-{number:05d}-of-{total:05d}.safetensors": TensorFile.plan(group)
        for number, group in enumerate(groups, 1)
    }


def index_of(files: Mapping[str, TensorFile]) -> bytes:
    """The ``STEM.safetensors.index.json`` of several files."""
    where = {name: path for path, file in files.items() for name in file.places}
    total = sum(file.size - len(file.header) for file in files.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    return (json.dumps(index, indent=2) + "\n").encode()


def write_fragments(
    folder: Path,
    files: Mapping[str, TensorFile],
    fragments: Sequence[Fragment],
    seen: Callable[[int], object] = lambda count: None,
) -> dict[str, str]:
    """Write this rank's fragments into files that `TensorFile.create` made, and sync them.

    Args:
        seen: told how many bytes are being written, again and again.

    Returns:
        By name, the hex SHA-256 of each file that this rank wrote from end to end.

    Raises:
        OSError: the disk is full, or fails.
    """
    digests = {}
    for name, file in files.items():
        mine = [fragment for fragment in fragments if fragment.name in file.places]
        digest = _write(folder / name, file, mine, seen) if mine else None
        if digest is not None:
            digests[name] = digest
    return digests


def _write(
    path: Path, file: TensorFile, fragments: Sequence[Fragment], seen: Callable[[int], object]
) -> str | None:
    """Write fragments; the file's SHA-256 if they are its whole content."""
    # Nothing is read from the mapping: it has the addresses that `runs` reckons with.
    mapped = file.arrays(path, "r")
    found = _joined(piece for fragment in fragments for piece in _pieces(mapped, fragment))
    begin = len(file.header)
    sha256 = None
    if [(at, sum(map(len, pieces))) for at, pieces in found] == [(begin, file.size - begin)]:
        # The header is there already: it is written again to pass by with the rest.
        found = [(0, [np.frombuffer(file.header, np.uint8), *found[0][1]])]
        sha256 = hashlib.sha256()

    def pass_by(data: memoryview) -> None:
        seen(len(data))
        if sha256 is not None:
            sha256.update(data)

    with writing_in_place(path) as out:
        for at, pieces in found:
            out.run(at, pieces, pass_by)
    return sha256.hexdigest() if sha256 else None


def _pieces(mapped: MappedTensors, fragment: Fragment) -> Iterator[tuple[int, Array]]:
    """The bytes of a fragment, cut where they lie apart in the file, each with its offset."""
    numbers = _array(fragment.data)
    whole = mapped[fragment.name]
    for view, which in runs(whole, fragment.part, fragment.first, len(numbers)):
        at = view.ctypes.data - mapped.raw.ctypes.data
        if view.flags.c_contiguous:
            yield at, numbers[which].view(np.uint8)
            continue
        for row, values in enumerate(numbers[which].reshape(view.shape)):
            yield at + row * view.strides[0], values.view(np.uint8)


def _array(data: Tensor) -> Array:
    """The memory of a tensor on the host as an array, of bfloat16 its bits."""
    if data.dtype == torch.bfloat16:
        return _array(data.view(torch.int16)).view(_BF16)
    array: Array = data.numpy()
    return array


def _joined(pieces: Iterable[tuple[int, Array]]) -> list[tuple[int, list[Array]]]:
    """Pieces grouped into contiguous stretches, by offset."""
    found: list[tuple[int, list[Array]]] = []
    end = None
    for at, data in sorted(pieces, key=lambda piece: piece[0]):
        if not len(data):
            continue
        if at != end:
            found.append((at, []))
        found[-1][1].append(data)
        end = at + len(data)
    return found


@dataclass(frozen=True)
class Stored:
    """The tensors of some files: a `ShapedSource`."""

    files: dict[str, MappedTensors]
    """By tensor."""

    def close(self) -> None:
        """Let go of the files: of one that was removed, the disk has its room again."""
        self.files.clear()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: mapped.file.places[name].shape for name, mapped in self.files.items()}

    @classmethod
    def open(cls, paths: Sequence[Path]) -> Stored:
        """Map files, which may then be unlinked.

        Raises:
            IntegrityError: one is no complete safetensors file, or two have the same tensor.
        """
        found: dict[str, MappedTensors] = {}
        for path in paths:
            mapped = TensorFile.open(path).arrays(path, "r")
            twice = mapped.file.places.keys() & found.keys()
            if twice:
                raise IntegrityError(f"{min(twice)} is in another file too", where=str(path))
            found.update(dict.fromkeys(mapped.file.places, mapped))
        return cls(found)

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def read(self, name: str, part: TensorShard, first: int, count: int) -> Tensor:
        if name not in self.files:
            raise IntegrityError(f"{name} is missing")
        whole = self.files[name][name]
        if whole.shape != part.shape:
            raise IntegrityError(f"{name} is {list(whole.shape)}, not {list(part.shape)}")
        found = np.empty(count, whole.dtype)
        for view, which in runs(whole, part, first, count):
            found[which] = view.reshape(-1)
        read = torch.from_numpy(found)
        return read.view(torch.bfloat16) if whole.dtype == _BF16 else read

    def whole(self, name: str) -> Tensor:
        """All of a tensor, in its shape."""
        shape = self.files[name].file.places[name].shape
        return self.read(name, TensorShard(shape), 0, prod(shape)).reshape(shape)
