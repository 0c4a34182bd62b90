"""What a user asks of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bc2.convert.exporting.formats import format_named
from bc2.convert.exporting.target import Dtype
from bc2.errors import UsageError
from bc2.parallel.state import FILE_BYTES

#: How much of a conversion is proven: the real consumer runs beside ours; every tensor is read
#: back and compared; nothing.
ProofLevel = Literal["full", "tensors", "none"]

#: bitsandbytes' formats.
Quantization = Literal["int8", "nf4"]


@dataclass(frozen=True)
class ExportRequest:
    """The options of ``bc2 convert``.

    Raises:
        UsageError: there is no such format, or options contradict it.
    """

    format: str
    dtype: Dtype | None = None
    """None: as the weights are stored."""
    limit: int = FILE_BYTES
    """Bytes of tensors in a file, unless one is larger."""
    quantization: Quantization | None = None
    optimizer: bool = False
    """Whether the optimizer's state goes along."""
    proof: ProofLevel = "full"
    proof_text: Path | None = None
    """Text to prove with; None: the model's own corpus, or what comes with bc2."""
    name: str | None = None
    """Of the artifact; None: the checkpoint's, and the format."""

    def __post_init__(self) -> None:
        wanted = format_named(self.format)
        if self.dtype is not None and self.dtype not in wanted.dtypes:
            raise UsageError(
                f"{self.format} has no {self.dtype}",
                where="--dtype",
                todo=f"there are: {', '.join(wanted.dtypes)}",
            )
        if self.quantization is not None and not wanted.quantizes:
            raise UsageError(
                f"{self.format} does not have bitsandbytes' {self.quantization}",
                where="--quantize",
                todo="--to gguf --dtype q8_0 is llama.cpp's own"
                if self.format == "gguf"
                else "choose a format for transformers: baichuan or llama",
            )
        if self.optimizer and self.format != "safetensors":
            raise UsageError(
                f"{self.format} has no place for the optimizer's state",
                where="--optimizer",
                todo="--to safetensors keeps it beside the weights",
            )
        if self.proof_text is not None and self.proof != "full":
            raise UsageError(
                "--proof-text is read by the full proof alone", todo="leave one of them out"
            )
