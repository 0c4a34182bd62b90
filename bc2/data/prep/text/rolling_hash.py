"""A rolling hash: the hash of any span of a sequence, computed from one running sum."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

#: Base of the rolling hash: odd, so that it has an inverse modulo 2**64.
_BASE = 0x9E3779B97F4A7C15

#: Fewest powers in the tables; longer sequences double the number.
_LEAST = 1 << 20


class Rolling(NamedTuple):
    """Hashes of the spans of a sequence of n numbers: polynomials modulo 2**64."""

    sums: UInt64
    """[n + 1] running sums of the numbers times powers of the base."""
    inverses: UInt64
    """[n or more] powers of the inverse of the base."""

    def spans(self, first: Int64, last: Int64) -> UInt64:
        """The hashes of the spans from `first` to before `last`; equal spans have equal hashes."""
        return (self.sums[last] - self.sums[first]) * self.inverses[first]


def rolling(values: npt.NDArray[np.unsignedinteger]) -> Rolling:
    """Compute the running sums of `values` [n], for hashes of their spans."""
    powers, inverses = _powers(max(len(values), _LEAST).bit_length())
    terms = values.astype(np.uint64)
    terms *= powers[: len(terms)]
    sums = np.zeros(len(terms) + 1, np.uint64)
    np.cumsum(terms, out=sums[1:])
    return Rolling(sums, inverses)


@cache
def _powers(bits: int) -> tuple[UInt64, UInt64]:
    """The powers of the base and of its inverse, from exponent 0: [2**bits + 1] each."""
    tables = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        steps = np.full((1 << bits) + 1, base, np.uint64)
        steps[0] = 1
        tables.append(np.cumprod(steps, dtype=np.uint64))
    return tables[0], tables[1]
