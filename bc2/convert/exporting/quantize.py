"""``--quantize int8|nf4``: the linear layers in bitsandbytes' formats, as Baichuan 2 released them.

Embedding, norms, biases and head stay as the plan has them. Rows are read, rounded to the plan's
type and quantised by bitsandbytes itself, some at a time: the files are those that transformers
writes of a model that it quantised, bit for bit, but for spaces after the 4-bit formats' JSON.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from bc2.convert.exporting.hf.config import TORCH_NAMES
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import Dtype, ExportPlan, Reader, TargetTensor
from bc2.convert.exporting.target_rows import target_rows
from bc2.convert.exporting.write_safetensors import planned_sizes
from bc2.convert.tensor_files import write_tensors
from bc2.errors import UsageError

Quantization = Literal["int8", "nf4"]

#: The linear layers.
_LINEAR = re.compile(
    r".*\.(W_pack|q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)\.weight"
)

#: Numbers that have one scale in NF4, and scales that have one of theirs.
_BLOCK, _NESTED_BLOCK = 64, 256

#: Rows and columns that its 4-bit kernels for CPUs take at once.
_KERNEL = (32, 64)

#: Bytes for the JSON of a 4-bit tensor, whose length is known only when it has been read.
_STATE_BYTES = 256

_STATE = "weight.quant_state.bitsandbytes__nf4"

#: Type and shape of a tensor.
Place = tuple[str, tuple[int, ...]]

#: A weight's rows from the first one on, rounded as the plan says; anew in every call.
Rows = Callable[[], Iterator[Tensor]]


def quantized(plan: ExportPlan, source: SourceModel, kind: Quantization) -> ExportPlan:
    """A plan of the same files with quantised linear layers.

    Raises:
        UsageError: bitsandbytes is not installed, or does not compute such layers.
    """
    if find_spec("bitsandbytes") is None:
        raise UsageError(
            f"{kind} is bitsandbytes' format, which is not installed",
            where="--quantize",
            todo='pip install "bc2[quantize]"',
        )
    quantizer = _QUANTIZERS[kind]
    _check_shapes(plan, source, kind)
    made = _Quantised.of(plan.tensors, quantizer)
    return replace(
        plan,
        tensors=made.tensors,
        sizes=planned_sizes(made.tensors, plan.limit),
        write=made.write,
        texts={**plan.texts, "config.json": _with_settings(plan, quantizer)},
        notes=(*plan.notes, f"{made.count:,} linear layers are written as {kind}; embedding, "
               f"norms and head stay {plan.dtype}"),
        readers=_readers(plan.readers),
        quantization=kind,
        before=plan,
    )  # fmt: skip


def _check_shapes(plan: ExportPlan, source: SourceModel, kind: Quantization) -> None:
    """Raises: UsageError: bitsandbytes' 4-bit kernels for CPUs take no such matrix."""
    rows, columns = _KERNEL
    for one in plan.tensors if kind == "nf4" else ():
        if _LINEAR.fullmatch(one.name) and (one.shape[0] % rows or one.shape[1] % columns):
            raise UsageError(
                f"{source.artifact.title} has {one.name} of {one.shape[0]:,} × {one.shape[1]:,}, "
                f"and bitsandbytes computes nf4 of multiples of {rows} × {columns}",
                where="--quantize",
                todo="ask for int8",
            )


def _with_settings(plan: ExportPlan, quantizer: Quantizer) -> bytes:
    config = json.loads(plan.texts["config.json"])
    settings = {"quant_method": "bitsandbytes", **quantizer.settings(plan.dtype)}
    config["quantization_config"] = settings | {"llm_int8_skip_modules": ["lm_head"]}
    return f"{json.dumps(config, indent=2, ensure_ascii=False)}\n".encode()


def _readers(readers: Iterable[Reader]) -> tuple[Reader, ...]:
    return tuple(
        Reader(one.name, True, f"{one.why}; with bitsandbytes and accelerate".removeprefix("; "))
        if one.name.startswith("transformers")
        else Reader(one.name, False, one.why if not one.reads else "not tried with these weights")
        for one in readers
    )


def _functions() -> Any:
    """bitsandbytes' own, without its words on kernels that only other programs need."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional


class Quantizer(Protocol):
    """How a linear layer's weight is written."""

    def settings(self, dtype: Dtype) -> dict[str, Any]:
        """What transformers is told of it in ``config.json``."""

    def places(self, shape: tuple[int, ...]) -> dict[str, Place]:
        """The tensors of a weight [rows, columns], by what follows the name of its layer."""

    def pieces(
        self, what: str, shape: tuple[int, ...], rows: Rows, kept: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """One of `places`, in pieces.

        Args:
            kept: what those of one weight share; empty at first.
        """


class _Int8:
    """LLM.int8() (arXiv 2208.07339): each row in units of 1/127 of its largest number."""

    def settings(self, dtype: Dtype) -> dict[str, Any]:
        return {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}

    def places(self, shape: tuple[int, ...]) -> dict[str, Place]:
        return {
            "weight": ("I8", shape),
            "SCB": ("F32", shape[:1]),
            "weight_format": ("U8", ()),  # 0: rows one after the other
        }

    def pieces(
        self, what: str, shape: tuple[int, ...], rows: Rows, kept: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        if what == "weight_format":
            yield torch.zeros(1, dtype=torch.uint8)
            return
        for some in rows():
            halves = some.to(torch.float16)
            if what == "SCB":
                yield halves.abs().amax(1).float()
            else:
                yield _functions().int8_vectorwise_quant(halves)[0]


class _Nf4:
    """QLoRA's NormalFloat (arXiv 2305.14314): blocks of 64, their scales in 8 bits.

    What belongs to a weight's scales is needed at several places of a file: it is kept from the
    first to the last, which takes a 64th of the weights.
    """

    def settings(self, dtype: Dtype) -> dict[str, Any]:
        return {
            "load_in_8bit": False, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": TORCH_NAMES[dtype],
        }  # fmt: skip

    def places(self, shape: tuple[int, ...]) -> dict[str, Place]:
        scales = -(-prod(shape) // _BLOCK)
        return {
            "weight": ("U8", (-(-prod(shape) // 2), 1)),
            "weight.absmax": ("U8", (scales,)),
            "weight.quant_map": ("F32", (16,)),
            "weight.nested_absmax": ("F32", (-(-scales // _NESTED_BLOCK),)),
            "weight.nested_quant_map": ("F32", (256,)),
            _STATE: ("U8", (_STATE_BYTES,)),
        }

    def pieces(
        self, what: str, shape: tuple[int, ...], rows: Rows, kept: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        if what == "weight":
            for flat in _blocks(rows()):
                yield _functions().quantize_4bit(flat, blocksize=_BLOCK, quant_type="nf4")[0]
            return
        if not kept:
            kept |= _scales(shape, rows)
        yield kept.pop(what)


def _blocks(rows: Iterable[Tensor]) -> Iterator[Tensor]:
    """The numbers of rows, in whole blocks: they may begin within a row."""
    left = None
    for some in rows:
        flat = some.reshape(-1) if left is None else torch.cat((left, some.reshape(-1)))
        whole = len(flat) // _BLOCK * _BLOCK
        if whole:
            yield flat[:whole]
        left = flat[whole:]
    if left is not None and len(left):
        yield left


def _scales(shape: tuple[int, ...], rows: Rows) -> dict[str, Tensor]:
    """Everything of a 4-bit weight but its numbers, by what follows the name of its layer."""
    functions = _functions()
    largest = torch.cat([_largest(flat) for flat in _blocks(rows())])
    middle = largest.mean()
    numbers, nested = functions.quantize_blockwise(largest - middle, blocksize=_NESTED_BLOCK)
    whole = functions.QuantState(
        absmax=numbers, shape=torch.Size(shape), dtype=next(rows()).dtype, blocksize=_BLOCK,
        code=functions.get_4bit_type("nf4", device="cpu"), quant_type="nf4", offset=middle,
        state2=nested,
    )  # fmt: skip
    found = {f"weight.{name}": tensor for name, tensor in whole.as_dict(packed=True).items()}
    text = bytes(found[_STATE].tolist()).ljust(_STATE_BYTES)
    found[_STATE] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return found


def _largest(flat: Tensor) -> Tensor:
    """Of each block; zeros after the last one change nothing. In fp32."""
    padded = pad(flat, (0, -len(flat) % _BLOCK))
    return padded.view(-1, _BLOCK).abs().amax(1).float()


_QUANTIZERS: Mapping[Quantization, Quantizer] = {"int8": _Int8(), "nf4": _Nf4()}


@dataclass(frozen=True)
class _Quantised:
    """What becomes of a plan's tensors."""

    tensors: tuple[TargetTensor, ...]
    linear: Mapping[str, tuple[TargetTensor, str]]
    """By the name of a written tensor the weight that it is of, and what of it."""
    quantizer: Quantizer

    @classmethod
    def of(cls, tensors: Iterable[TargetTensor], quantizer: Quantizer) -> _Quantised:
        made: list[TargetTensor] = []
        linear = {}
        for target in tensors:
            if not _LINEAR.fullmatch(target.name):
                made.append(target)
                continue
            for what, (dtype, shape) in quantizer.places(target.shape).items():
                name = f"{target.name.removesuffix('weight')}{what}"
                made.append(replace(target, name=name, dtype=dtype, shape=shape))
                linear[name] = target, what
        return cls(tuple(made), linear, quantizer)

    @property
    def count(self) -> int:
        """Weights that are quantised."""
        return len({target.name for target, _ in self.linear.values()})

    def write(
        self, folder: Path, source: SourceModel, plan: ExportPlan, seen: Callable[[int], object]
    ) -> dict[str, str]:
        """An `ExportPlan.write`; raises as `write_safetensors`."""
        by_name = {one.name: one for one in self.tensors}
        kept: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)

        def pieces(name: str) -> Iterator[memoryview]:
            found = target_rows(source, by_name[name])
            if name in self.linear:
                target, what = self.linear[name]
                rows = partial(target_rows, source, target)
                found = self.quantizer.pieces(what, target.shape, rows, kept[target.name])
            for tensor in found:
                yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data

        places = {one.name: (one.dtype, one.shape) for one in self.tensors}
        return write_tensors(folder, places, pieces, seen, plan.limit)
