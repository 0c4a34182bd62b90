"""A GGUF file: its header, made before, and tensors that are read, changed and written by rows."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import GGUF_DEFAULT_ALIGNMENT as ALIGNMENT
from gguf.gguf_writer import WriterState
from gguf.quants import quantize
from torch import Tensor

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan, TargetTensor
from bc2.convert.exporting.target_rows import target_rows
from bc2.convert.ordered_work import beside
from bc2.errors import DataError
from bc2.files import sync_file, write_at

#: That quantise: NumPy lets others work meanwhile.
_THREADS = min(os.cpu_count() or 1, 8)

#: What a file is called by the type of its embedding.
_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}


@dataclass(frozen=True)
class GgufFile:
    """What a file says beside the checkpoint's tensors."""

    writer: GGUFWriter
    """With the metadata in it, and no tensor."""
    tables: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Tensors after those of the plan, by name."""

    def layout(self, tensors: Sequence[TargetTensor]) -> tuple[bytes, int]:
        """All that is before the first tensor, and the bytes of the whole file."""
        writer = GGUFWriter(None, self.writer.arch)
        writer.kv_data = [dict(self.writer.kv_data[0])]
        writer.add_file_type(_FILE_TYPES[tensors[0].dtype])
        shapes = [(one.name, one.dtype, one.shape) for one in tensors]
        shapes += [(name, "F32", table.shape) for name, table in self.tables.items()]
        size = sum(_add_tensor(writer, *one) for one in shapes)
        begin = BytesIO()
        # As if it had opened a file.
        writer.fout, writer.state = [begin], WriterState.EMPTY  # type: ignore[list-item]
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        header = begin.getvalue()
        header += bytes(-len(header) % ALIGNMENT)
        return header, len(header) + size

    def write(
        self,
        folder: Path,
        source: SourceModel,
        plan: ExportPlan,
        seen: Callable[[int], object],
    ) -> dict[str, str]:
        """See `bc2.convert.exporting.target.WriteWeights`.

        Raises:
            DataError: see `target_rows`; or a number is too large for the scale of its block.
            OSError: the disk is full: found before anything is copied.
        """
        (name,) = plan.sizes
        header, size = self.layout(plan.tensors)
        path = folder / name
        with path.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            pieces = itertools.chain([memoryview(header)], self._pieces(source, plan))
            digest = _write(file.fileno(), pieces, seen)
        sync_file(path)
        return {name: digest}

    def _pieces(self, source: SourceModel, plan: ExportPlan) -> Iterator[memoryview]:
        for target in plan.tensors:
            yield from _padded(_tensor_pieces(source, target))
        for table in self.tables.values():
            yield from _padded([table.astype("<f4").tobytes()])


def _write(fd: int, pieces: Iterable[memoryview], seen: Callable[[int], object]) -> str:
    """Write pieces one after the other, on a thread of their own; the SHA-256 of all."""
    digest, at = hashlib.sha256(), 0

    def write(piece: tuple[memoryview, int]) -> None:
        write_at(fd, *piece)
        digest.update(piece[0])

    with beside(write) as give:
        for piece in pieces:
            give((piece, at))
            at += len(piece)
            seen(len(piece))
    return digest.hexdigest()


def _add_tensor(writer: GGUFWriter, name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Announce a tensor; the bytes that it takes."""
    kind = GGMLQuantizationType[dtype]
    numbers, size = GGML_QUANT_SIZES[kind]
    count = prod(shape) // numbers * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), count, raw_dtype=kind)
    return GGUFWriter.ggml_pad(count, ALIGNMENT)


def _tensor_pieces(source: SourceModel, target: TargetTensor) -> Iterator[memoryview]:
    for rows in target_rows(source, target):
        if target.dtype != "Q8_0":
            yield rows.reshape(-1).view(torch.uint8).numpy().data
            continue
        largest = float(rows.abs().max())
        if largest / 127 > torch.finfo(torch.float16).max:
            raise DataError(
                f"{target.source} holds {largest:g}, which is too large for Q8_0",
                where=str(source.weights[target.source].path),
                todo="convert with --dtype bf16 or fp32",
            )
        yield from _quantised(rows)


def _quantised(rows: Tensor) -> Iterator[memoryview]:
    """Rows in Q8_0, on several threads: the gguf package has one."""
    parts = [part.numpy() for part in rows.tensor_split(_THREADS) if len(part)]
    with ThreadPoolExecutor(_THREADS) as threads:
        for part in threads.map(_quantise, parts):
            yield part.reshape(-1).data


def _quantise(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    made: npt.NDArray[np.uint8] = quantize(rows, GGMLQuantizationType.Q8_0)
    return made


def _padded(pieces: Iterable[memoryview | bytes]) -> Iterator[memoryview]:
    """The bytes of a tensor, up to where the next one may begin."""
    size = 0
    for piece in pieces:
        size += len(piece)
        yield memoryview(piece)
    if rest := -size % ALIGNMENT:
        yield memoryview(bytes(rest))
