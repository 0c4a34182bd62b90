"""A GGUF file: its header, made before, and tensors that are read, changed and written by rows."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.gguf_writer import WriterState

from bc2.convert.exporting.gguf.q8_0 import to_q8_0
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan, TargetTensor
from bc2.convert.exporting.target_rows import target_rows
from bc2.errors import DataError
from bc2.files import sync_file, write_at

#: Pieces that wait to be written while the next one is made.
_WAITING = 2


@dataclass(frozen=True)
class GgufFile:
    """A file's beginning, and what of its tensors is no row of the checkpoint."""

    header: bytes
    """Everything before the first tensor, padding included."""
    size: int
    """Bytes of the whole file."""
    tables: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Tensors after those of the plan, by name."""

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
        path = folder / name
        with path.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, self.size)
            digest = self._write(file.fileno(), self._pieces(source, plan), seen)
        sync_file(path)
        return {name: digest}

    def _pieces(self, source: SourceModel, plan: ExportPlan) -> Iterator[memoryview]:
        yield memoryview(self.header)
        for target in plan.tensors:
            yield from _padded(_tensor_pieces(source, target))
        for table in self.tables.values():
            yield from _padded([table.astype("<f4").tobytes()])

    def _write(self, fd: int, pieces: Iterator[memoryview], seen: Callable[[int], object]) -> str:
        """Write pieces one after the other, on a thread of their own; the SHA-256 of all."""
        digest, at = hashlib.sha256(), 0

        def write(piece: memoryview, offset: int) -> int:
            write_at(fd, piece, offset)
            digest.update(piece)
            return len(piece)

        waiting: deque[Future[int]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for piece in pieces:
                waiting.append(thread.submit(write, piece, at))
                at += len(piece)
                while len(waiting) > _WAITING:
                    seen(waiting.popleft().result())
            for one in waiting:
                seen(one.result())
        assert at == self.size, "the header says where each tensor is"
        return digest.hexdigest()


def gguf_file(
    writer: GGUFWriter,
    tensors: tuple[TargetTensor, ...],
    tables: Mapping[str, npt.NDArray[np.float32]],
) -> GgufFile:
    """The file of some metadata and tensors."""
    size = 0
    for target in tensors:
        size += _add_tensor(writer, target.name, target.dtype, target.shape)
    for name, table in tables.items():
        size += _add_tensor(writer, name, "F32", table.shape)
    begin = BytesIO()
    # As if it had opened a file: nothing is to be written yet.
    writer.fout, writer.state = [begin], WriterState.EMPTY  # type: ignore[list-item]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    header = begin.getvalue()
    header += bytes(-len(header) % writer.data_alignment)
    return GgufFile(header, len(header) + size, tables)


def _add_tensor(writer: GGUFWriter, name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Announce a tensor; the bytes that it takes."""
    kind = GGMLQuantizationType[dtype]
    numbers, size = GGML_QUANT_SIZES[kind]
    count = prod(shape) // numbers * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), count, raw_dtype=kind)
    return GGUFWriter.ggml_pad(count, writer.data_alignment)


def _tensor_pieces(source: SourceModel, target: TargetTensor) -> Iterator[memoryview]:
    for rows in target_rows(source, target):
        if target.dtype == "Q8_0":
            made = to_q8_0(rows)
            if rows.abs().max() / 127 > torch.finfo(torch.float16).max:
                raise DataError(
                    f"{target.source} holds {rows.abs().max():g}, which is too large for Q8_0",
                    where=str(source.weights[target.source].path),
                    todo="convert with --dtype bf16 or fp32",
                )
        else:
            made = rows.reshape(-1).view(torch.uint8)
        yield made.reshape(-1).numpy().data


def _padded(pieces: Iterator[memoryview] | list[bytes]) -> Iterator[memoryview]:
    """The bytes of a tensor, up to where the next one may begin."""
    size = 0
    for piece in pieces:
        size += len(piece)
        yield memoryview(piece)
    if rest := -size % 32:
        yield memoryview(bytes(rest))
