"""bitsandbytes' formats, read back by headers and numbers alone: none of its code is used.

int8: each row in units of 1/127 of its largest number. NF4 (arXiv 2305.14314): blocks of 64 numbers
as indices of 16 levels, two to a byte, the first in the upper half; the largest number of each
block, less the mean of all of them, as an index of 256 levels in units of one in 256 of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bc2.convert.proof.written_tensors import WrittenTensor

Wide = npt.NDArray[np.float32]

_BLOCK, _NESTED = 64, 256

#: So many rows are whole blocks, however wide they are.
BLOCK_ROWS = _BLOCK

#: The widest of the 256 levels are 0.0141 apart.
_NESTED_STEP = 0.0075

#: What levels and quotients in fp32 may be off by.
_ROUNDED = 1e-6

_STATE = "quant_state.bitsandbytes__nf4"


class QuantizedWeight(Protocol):
    """A linear layer's weight in a format of few bits."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    @property
    def parts(self) -> frozenset[str]:
        """Names of the tensors that it is made of."""

    def rows(self, first: int, count: int) -> Wide:
        """What rows stand for: [count, columns]."""

    def far(self, first: int, exact: Wide) -> npt.NDArray[np.bool_]:
        """Where another level would be nearer to what rows are to be: [count, columns]."""


def quantized_weights(written: Mapping[str, WrittenTensor]) -> dict[str, QuantizedWeight]:
    """The quantised weights among the tensors of some files, by name."""
    found: dict[str, QuantizedWeight] = {}
    for name in written:
        layer = name.removesuffix("weight")
        if name == f"{layer}weight" and f"{layer}weight_format" in written:
            parts = (written[f"{layer}{what}"] for what in ("weight", "SCB", "weight_format"))
            found[name] = _Int8(name, *parts)
        elif f"{name}.{_STATE}" in written:
            found[name] = _Nf4(name, written)
    return found


@dataclass(frozen=True)
class _Int8:
    name: str
    numbers: WrittenTensor
    largest: WrittenTensor
    order: WrittenTensor
    """0: rows one after the other."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    @property
    def parts(self) -> frozenset[str]:
        layer = self.name.removesuffix("weight")
        return frozenset({self.name, f"{layer}SCB", f"{layer}weight_format"})

    def _read(self, first: int, count: int) -> tuple[npt.NDArray[np.int8], Wide]:
        numbers = self.numbers.rows(first, count).view(np.int8).reshape(count, -1)
        return numbers, self.largest.rows(first, count).view(np.float32)[:, None]

    def rows(self, first: int, count: int) -> Wide:
        numbers, largest = self._read(first, count)
        return numbers * (largest / np.float32(127))

    def far(self, first: int, exact: Wide) -> npt.NDArray[np.bool_]:
        halves = exact.astype(np.float16).astype(np.float32)  # as bitsandbytes reads them
        numbers, largest = self._read(first, len(exact))
        units = halves * (127 / np.maximum(largest, np.finfo(np.float32).tiny))
        off = np.abs(numbers - units) > 0.5 + 127 * _ROUNDED
        wrong = (largest != np.abs(halves).max(1, keepdims=True)) | self.order.rows(0, 1)
        return np.asarray(off | wrong)


@dataclass(frozen=True)
class _Nf4:
    name: str
    written: Mapping[str, WrittenTensor]

    def _part(self, what: str) -> npt.NDArray[np.uint8]:
        tensor = self.written[f"{self.name}.{what}"]
        return tensor.rows(0, tensor.shape[0])

    @cached_property
    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._part(_STATE).tobytes())
        return state

    @cached_property
    def _levels(self) -> Wide:
        return self._part("quant_map").view(np.float32)

    @cached_property
    def _scales(self) -> Wide:
        """What the largest number of each block was divided by."""
        scales = self._part("nested_absmax").view(np.float32)
        return np.repeat(scales, _NESTED)[: self.written[f"{self.name}.absmax"].shape[0]]

    @cached_property
    def _largest(self) -> Wide:
        """Of each block, as it was kept."""
        levels = self._part("nested_quant_map").view(np.float32)
        middle = np.float32(self._state["nested_offset"])
        return levels[self._part("absmax")] * self._scales + middle

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._state["shape"])

    @property
    def parts(self) -> frozenset[str]:
        found = {name for name in self.written if name.startswith(f"{self.name}.")}
        return frozenset({self.name, *found})

    def _read(self, first: int, count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Indices of levels, and the block of each number."""
        width = self.shape[1]
        begin, end = first * width, (first + count) * width
        packed = self.written[self.name].rows(begin // 2, -(-end // 2) - begin // 2)
        both = np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)
        chosen = both[begin % 2 : begin % 2 + end - begin].astype(np.intp)
        return chosen, np.arange(begin, end) // _BLOCK

    def rows(self, first: int, count: int) -> Wide:
        chosen, blocks = self._read(first, count)
        return (self._levels[chosen] * self._largest[blocks]).reshape(count, -1)

    def far(self, first: int, exact: Wide) -> npt.NDArray[np.bool_]:
        """Of whole blocks alone: rows must begin and end with some, or with the weight."""
        chosen, blocks = self._read(first, len(exact))
        flat = exact.reshape(-1)
        place = blocks - blocks[0]
        largest = np.zeros(place[-1] + 1, np.float32)
        np.maximum.at(largest, place, np.abs(flat))
        here = slice(blocks[0], blocks[-1] + 1)
        wrong = np.abs(self._largest[here] - largest) > _NESTED_STEP * self._scales[here]
        wanted = flat / np.maximum(largest[place], np.finfo(np.float32).tiny)
        off = np.abs(self._levels[chosen] - wanted)
        middles = (self._levels[1:] + self._levels[:-1]) / 2
        nearest = np.abs(self._levels[np.searchsorted(middles, wanted)] - wanted)
        return np.asarray((off > nearest + _ROUNDED) | wrong[place]).reshape(exact.shape)
