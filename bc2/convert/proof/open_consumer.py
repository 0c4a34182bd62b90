"""The program that reads a format, with what was written loaded into it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from bc2.convert.exporting.formats import format_named
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan, RowChange, TargetTensor
from bc2.convert.proof.consumer import Consumer
from bc2.convert.proof.worker import open_worker
from bc2.errors import UsageError
from bc2.model.safetensors_file import DTYPES

#: The first version of transformers that what is written is made for.
_TRANSFORMERS = 5


@contextmanager
def open_consumer(plan: ExportPlan, folder: Path, scratch: Path) -> Iterator[Consumer]:
    """Load what a plan wrote; the program ends with the context.

    Args:
        folder: what was written.
        scratch: a folder for large answers.

    Raises:
        RunFailed: it does not load.
    """
    if plan.prover == "llama.cpp":
        # Imported here: it is no part of what other formats need.
        from bc2.convert.proof.llama_server import open_server

        (name,) = (name for name in plan.sizes if name.endswith(".gguf"))
        with open_server(folder / name) as server:
            yield server
        return
    code = any(name.endswith(".py") for name in plan.texts)
    scores = any(target.name == "score.weight" for target in plan.tensors)
    loads = {"folder": str(folder), "remote_code": code, "scores": scores}
    with open_worker("transformers", scratch, **loads) as worker:
        yield worker


def check_consumer(plan: ExportPlan) -> bool:
    """Whether the program that proves a format is installed; one that nobody needs may lack.

    Raises:
        UsageError: transformers is not installed, or is too old.
    """
    if plan.prover == "llama.cpp":
        from bc2.convert.proof.llama_server import find_server

        return find_server() is not None
    if plan.prover == "transformers":
        _check_transformers()
    return plan.prover is not None


def _check_transformers() -> None:
    there = importlib.util.find_spec("transformers") is not None
    if there and int(version("transformers").split(".")[0]) >= _TRANSFORMERS:
        return
    what = f"is {version('transformers')} here" if there else "is not installed"
    raise UsageError(
        f"what is written is proven with transformers {_TRANSFORMERS}, which {what}",
        todo='pip install "bc2[convert]", or ask for less: --proof tensors',
    )


def computes_narrowly(plan: ExportPlan) -> bool:
    """Whether the program rounds activations to the type of the weights, which ours does not."""
    return plan.prover == "llama.cpp" and plan.dtype in ("bf16", "fp16")


def least_log_probability(plan: ExportPlan) -> float:
    """The least that the program can tell."""
    if plan.prover == "llama.cpp":
        from bc2.convert.proof.llama_server import FLOOR

        return FLOOR
    return -math.inf


def widened(source: SourceModel, plan: ExportPlan) -> ExportPlan:
    """The same rounded weights in fp32, for a program that computes in 16 bits what is in 16."""
    wide = format_named(plan.format).plan(source, "fp32", plan.limit)
    narrow = {target.name: target for target in plan.tensors}
    tensors = (replace(one, change=_rounding(narrow[one.name])) for one in wide.tensors)
    return replace(wide, tensors=tuple(tensors))


def _rounding(target: TargetTensor) -> RowChange:
    """A tensor's change, and then its rounding."""
    before, dtype = target.change, DTYPES[target.dtype]

    def rounded(rows: Tensor) -> Tensor:
        changed = before.apply(rows) if before else rows
        return changed.to(dtype).to(torch.float32)

    return RowChange(before.block if before else 1, rounded)
