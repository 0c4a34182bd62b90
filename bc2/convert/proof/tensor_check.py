"""Every tensor of the written files, read back and compared with the checkpoint, bit for bit.

Rounding, NormHead's rows and the order of channels are computed here once more, in numpy. Of a
folded head, whose lengths no two programs sum in the same order, each number is to be within
rounding of the exact one. No tensor is held as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import SAFETENSORS, Dtype, ExportPlan, TargetTensor
from bc2.convert.proof.expected_tensors import Expected, expected
from bc2.convert.proof.quantized_weights import BLOCK_ROWS, QuantizedWeight, quantized_weights
from bc2.convert.proof.rotary_factors import FACTORS, rotary_factors
from bc2.convert.proof.written_tensors import BLOCK, BLOCK_BYTES, WrittenTensor, written_tensors
from bc2.model.model_config import ModelConfig

Bytes = npt.NDArray[np.uint8]
Wide = npt.NDArray[np.float32]

#: Numbers that are compared at once.
_AT_ONCE = 2 << 20

#: Bits of the significand, and the smallest step of numbers near zero.
_PRECISION = {"F32": (24, 2.0**-149), "F16": (11, 2.0**-24), "BF16": (8, 2.0**-133)}

#: Rows that are summed in fp32 are within this of what they are, relatively.
_SUMMED = 2.0**-20

#: A block's numbers are within this part of their scale: half a step, and the scale's rounding.
_BLOCK_ERROR = 0.57


def check_tensors(
    folder: Path, source: SourceModel, plan: ExportPlan, seen: Callable[[int], object]
) -> tuple[dict[str, Any], list[str]]:
    """How many tensors were compared, and what is wrong with some.

    Args:
        seen: told how many bytes were compared, again and again.

    Raises:
        RunFailed: a file cannot be read at all.
    """
    found, architecture = written_tensors(folder, sorted(plan.sizes))
    planned = {target.name: target for target in plan.tensors}
    table = found.pop(FACTORS, None)
    problems = [f"{name} is missing" for name in sorted(planned.keys() - found.keys())]
    problems += [f"{name} is not in the plan" for name in sorted(found.keys() - planned.keys())]
    if table is not None and not _factors_fit(table, source.config):
        problems.append(f"{FACTORS} is not what the model's rope_scaling says")
    covered: dict[str, int] = {}
    few_bits = quantized_weights(found)
    parts = {part for one in few_bits.values() for part in one.parts}
    for name in sorted((planned.keys() & found.keys()) - parts):
        written, target = found[name], planned[name]
        wanted = expected(name, written.shape[0], source.config, plan.format, architecture)
        problem = _problem(source, written, target, wanted, seen)
        if problem is not None:
            problems.append(f"{name} {problem}")
        covered[wanted.source] = covered.get(wanted.source, 0) + wanted.rows
    for name, weight in few_bits.items():
        wanted = expected(name, weight.shape[0], source.config, plan.format, "")
        problem = _few_bits_problem(source, weight, wanted, plan.dtype, seen)
        problem = problem or _places_problem(weight, found, planned)
        if problem is not None:
            problems.append(f"{name} {problem}")
        covered[wanted.source] = covered.get(wanted.source, 0) + wanted.rows
    for name, stored in source.weights.items():
        if covered.get(name, 0) < stored.shape[0]:
            problems.append(f"rows of {name} are in no file")
    facts = {"tensors": len(found), "bytes": sum(plan.sizes.values())}
    return facts, problems


def _factors_fit(table: WrittenTensor, config: ModelConfig) -> bool:
    right = rotary_factors(config)
    if right is None or (table.dtype, table.shape) != ("F32", right.shape):
        return False
    return np.allclose(wide(table.rows(0, len(right)), "F32"), right, rtol=1e-4)


def _places_problem(
    weight: QuantizedWeight,
    found: Mapping[str, WrittenTensor],
    planned: Mapping[str, TargetTensor],
) -> str | None:
    """Whether a part of a quantised weight is of another type or shape than was planned."""
    for part in sorted(weight.parts & planned.keys() & found.keys()):
        there, target = found[part], planned[part]
        if (there.dtype, there.shape) != (target.dtype, target.shape):
            return f"has {part} as {there.dtype} {list(there.shape)}, unlike the plan"
    return None


def _few_bits_problem(
    source: SourceModel,
    weight: QuantizedWeight,
    wanted: Expected,
    dtype: Dtype,
    seen: Callable[[int], object],
) -> str | None:
    """What is wrong with a quantised weight: a number whose nearest level is another one."""
    stored = source.weights.get(wanted.source)
    if stored is None or wanted.first + wanted.rows > stored.shape[0]:
        return "is made of no tensor of the checkpoint"
    if stored.shape[1:] != weight.shape[1:]:
        return f"does not have the shape of {wanted.source}"
    numbers = WrittenTensor(stored.path, stored.dtype, stored.shape, stored.offset)
    width = weight.shape[1]
    step = max(1, _AT_ONCE // (width * BLOCK_ROWS)) * BLOCK_ROWS
    for first in range(0, wanted.rows, step):
        count = min(step, wanted.rows - first)
        rows = wide(numbers.rows(wanted.first + first, count), stored.dtype)
        exact = wide(_narrowed(rows, SAFETENSORS[dtype]), SAFETENSORS[dtype])
        far = weight.far(first, exact.reshape(count, width))
        if far.any():
            row, column = divmod(int(far.argmax()), width)
            return f"is not what the checkpoint has, from row {first + row}, column {column} on"
        seen(count * width // 2)
    return None


def _narrowed(rows: Wide, dtype: str) -> Bytes:
    return np.ascontiguousarray(narrow(rows, dtype)).view(np.uint8)


def _problem(
    source: SourceModel,
    written: WrittenTensor,
    target: TargetTensor,
    wanted: Expected,
    seen: Callable[[int], object],
) -> str | None:
    """What is wrong with a tensor, or None."""
    if (written.dtype, written.shape) != (target.dtype, target.shape):
        return (
            f"is {written.dtype} {list(written.shape)}, and the plan says {target.dtype} "
            f"{list(target.shape)}"
        )
    stored = source.weights.get(wanted.source)
    if stored is None:
        return "is made of no tensor of the checkpoint"
    if stored.shape[1:] != written.shape[1:] or wanted.first + wanted.rows > stored.shape[0]:
        return f"does not have the shape of {wanted.source}"
    numbers = WrittenTensor(stored.path, stored.dtype, stored.shape, stored.offset)
    width = prod(written.shape[1:])
    block = source.config.head_size if wanted.change == "interleaved" else 1
    step = max(1, _AT_ONCE // (width * block)) * block
    for first in range(0, wanted.rows, step):
        count = min(step, wanted.rows - first)
        there = written.rows(first, count)
        here = numbers.rows(wanted.first + first, count)
        at = _different(here, there, stored.dtype, written.dtype, wanted, block, width)
        if at is not None:
            row, column = divmod(at, width)
            return f"is not what the checkpoint has, from row {first + row}, column {column} on"
        seen(there.nbytes)
    return None


def _different(
    here: Bytes, there: Bytes, stored: str, written: str, wanted: Expected, block: int, width: int
) -> int | None:
    """The first number that differs, or None."""
    if stored == written and wanted.change == "none":
        wrong = here.view(_bits(stored)) != there.view(_bits(stored))
        return int(wrong.argmax()) if wrong.any() else None
    rows = wide(here, stored).reshape(-1, width)
    if wanted.change == "interleaved":
        rows = interleaved(rows, block)
    if wanted.change == "unit":
        wrong = _not_unit(rows, there, written)
    elif written == "Q8_0":
        wrong = _blocks_differ(rows, there)
    else:
        wrong = narrow(rows.reshape(-1), written) != there.view(_bits(written))
    return int(wrong.argmax()) if wrong.any() else None


def _bits(dtype: str) -> type[np.uint32] | type[np.uint16]:
    return np.uint32 if dtype == "F32" else np.uint16


def wide(data: Bytes, dtype: str) -> Wide:
    """Bytes as fp32, which holds every number of the three types."""
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float32 if dtype == "F32" else np.float16).astype(np.float32)


def narrow(numbers: Wide, dtype: str) -> npt.NDArray[Any]:
    """The bits of finite numbers rounded to the nearest of a type, of two to the even one."""
    if dtype == "F32":
        return numbers.view(np.uint32)
    if dtype == "F16":
        return numbers.astype(np.float16).view(np.uint16)
    bits = numbers.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def interleaved(rows: Wide, block: int) -> Wide:
    """Rows of heads with channels k and k + K/2 side by side, which llama.cpp rotates."""
    heads = rows.reshape(-1, 2, block // 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def _not_unit(rows: Wide, there: Bytes, dtype: str) -> npt.NDArray[np.bool_]:
    exact = rows.astype(np.float64)
    lengths = np.sqrt((exact * exact).sum(1, keepdims=True))
    exact = (exact / np.maximum(lengths, 1e-12)).reshape(-1)
    if dtype == "Q8_0":
        return _too_far(exact, there, _SUMMED)
    bits, least = _PRECISION[dtype]
    bound = np.abs(exact) * (2.0**-bits + _SUMMED) + least
    return np.asarray(np.abs(wide(there, dtype) - exact) > bound)


def _blocks_differ(rows: Wide, there: Bytes) -> npt.NDArray[np.bool_]:
    """Bit for bit what the gguf package makes, and within a step of the number."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    made = quantize(rows, GGMLQuantizationType.Q8_0).reshape(-1, BLOCK_BYTES)
    different = np.repeat((made != there.reshape(-1, BLOCK_BYTES)).any(1), BLOCK)
    return different | _too_far(rows.reshape(-1).astype(np.float64), there, 0.0)


def _too_far(exact: npt.NDArray[np.float64], there: Bytes, slack: float) -> npt.NDArray[np.bool_]:
    blocks = there.reshape(-1, BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float64)
    numbers = np.ascontiguousarray(blocks[:, 2:]).view(np.int8) * scales
    bound = np.abs(scales) * _BLOCK_ERROR + 1e-12
    off = np.abs(numbers - exact.reshape(numbers.shape)) > bound + slack
    return np.asarray(off.reshape(-1))
