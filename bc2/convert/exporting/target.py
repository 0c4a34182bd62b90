"""What a conversion writes: each tensor of the files, what it is made of, and who can read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from bc2.convert.exporting.source_model import SourceModel

#: Of ``--dtype``; the last is GGUF's alone.
Dtype = Literal["fp32", "bf16", "fp16", "q8_0"]

#: safetensors' names of them.
SAFETENSORS: dict[Dtype, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}

#: What reads a format, and proves it.
ConsumerName = Literal["transformers", "llama.cpp"]


@dataclass(frozen=True)
class RowChange:
    """A change of a tensor that needs no more than some of its rows at once."""

    block: int
    """Rows that it needs together; the number of rows is a multiple."""
    apply: Callable[[Tensor], Tensor]
    """[n · block, ...] as stored -> the same shape, as stored or in fp32."""


@dataclass(frozen=True)
class TargetTensor:
    """A tensor of the written files: rows of one of the checkpoint's."""

    name: str
    dtype: str
    """As the format names it: ``F32``, ``BF16``, ``F16``; in GGUF also ``Q8_0``."""
    shape: tuple[int, ...]
    """Rows first, also where the file's format says it the other way round."""
    source: str
    """The checkpoint's name of the tensor that it is of."""
    first: int = 0
    """The first of its rows."""
    change: RowChange | None = None


@dataclass(frozen=True)
class Reader:
    """Whether a program can load what is written."""

    name: str
    """And the versions that this is about."""
    reads: bool
    why: str = ""
    """What it needs, or what it lacks."""


#: Writes a plan's weights into a folder, and tells how many bytes it wrote, again and again; the
#: hex SHA-256 of each file by name.
WriteWeights = Callable[
    [Path, "SourceModel", "ExportPlan", Callable[[int], object]], dict[str, str]
]


@dataclass(frozen=True)
class ExportPlan:
    """Everything that is known of a conversion before a byte is written."""

    format: str
    """What is written; another one than was asked for where `notes` says why."""
    dtype: Dtype
    tensors: tuple[TargetTensor, ...]
    sizes: Mapping[str, int]
    """Bytes of each file of weights by name."""
    write: WriteWeights
    limit: int
    """Bytes of tensors in a file, unless one is larger."""
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """The other files by name: configuration, tokenizer, template, code."""
    copied: tuple[str, ...] = ()
    """Files of the checkpoint that go along as they are."""
    notes: tuple[str, ...] = ()
    """Sentences that the user is told."""
    readers: tuple[Reader, ...] = ()
    quantization: str | None = None
    """bitsandbytes' format of the linear layers: ``int8``, ``nf4``."""
    before: ExportPlan | None = None
    """The plan of what is quantised: the same weights, rounded only."""
    prover: ConsumerName | None = None
    """The program that the proof runs; None: no program computes with it."""

    @property
    def numbers(self) -> str:
        """What most of the weights are written as, in words."""
        return self.quantization or self.dtype
