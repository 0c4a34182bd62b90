"""What merging must know of whole tensors, found in parts: no tensor is ever held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import inf

import torch
from torch import Tensor

from bc2.convert.ordered_work import in_order

#: Of the 31 bits of a magnitude in fp32, those that the second look is for.
_LOW = 15
_BINS = 1 << (31 - _LOW)

#: From this mean product on, those that fp32 rounds to few digits are nothing beside it.
_SMALL = 1e-30

#: Numbers that one thread sums.
_RUN = 1024

#: The same part of a tensor in each model: rows, or what was subtracted from them.
Parts = Sequence[Tensor]

#: Reads a part when it is wanted: several are worked on side by side.
ReadParts = Callable[[], Parts]


def gram(blocks: Iterable[ReadParts], count: int) -> Tensor:
    """The products of N tensors with each other, as vectors: [N, N] in fp64.

    Args:
        blocks: part after part, N tensors each.
        count: N.
    """
    total = torch.zeros(count, count, dtype=torch.float64)
    for products in in_order(_products, blocks):
        total += products
    return total + total.triu(1).T


def _products(read: ReadParts) -> Tensor:
    flat = [part.reshape(-1) for part in read()]
    found = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for i in range(len(flat)):
        for j in range(i, len(flat)):
            found[i, j] = _product(flat[i], flat[j])
    return found


def _product(one: Tensor, other: Tensor) -> float:
    quick = _sum(one * other)
    # In fp32 the squares of large numbers are infinite, and those of small ones lose digits or are
    # 0; where a sum may be of such it is computed once more.
    if _SMALL * len(one) <= abs(quick) < inf:
        return quick
    return _sum(one.double() * other.double())


def _sum(numbers: Tensor) -> float:
    """To the same bit by any number of threads, which share a whole sum among them but no run; and
    in pairs, not one after the other as `@` may: a tenth of its error."""
    whole = len(numbers) // _RUN * _RUN
    runs = numbers[:whole].view(-1, _RUN).sum(1)
    return float(runs.sum(dtype=torch.float64)) + float(numbers[whole:].sum())


def mean_cosine(products: Tensor) -> float:
    """The mean cosine of all pairs, from their `gram`; one with a tensor of zeros counts as 0."""
    lengths = products.diagonal().sqrt()
    pairs = list(combinations(range(len(lengths)), 2))
    found = [
        float(products[i, j] / (lengths[i] * lengths[j])) if lengths[i] * lengths[j] > 0 else 0.0
        for i, j in pairs
    ]
    return max(-1.0, min(1.0, sum(found) / len(pairs)))


def magnitudes_at(blocks: Callable[[], Iterable[ReadParts]], ranks: Sequence[int]) -> list[float]:
    """Of each of N tensors the magnitude that is at some rank from the largest; exact.

    A magnitude's bits sort as it does. So the first look counts by the upper bits and finds the
    bin, and the second, by the others, what lies in it.

    Args:
        blocks: gives part after part, N tensors each; called twice.
        ranks: 1 is the largest; no more than a tensor has numbers.
    """
    upper = _count(blocks(), len(ranks), lambda bits, _: bits >> _LOW, _BINS)
    bins = [_bin_at(counts, rank) for counts, rank in zip(upper, ranks, strict=True)]
    mask = (1 << _LOW) - 1
    lower = _count(
        blocks(), len(ranks), lambda bits, n: bits[bits >> _LOW == bins[n][0]] & mask, mask + 1
    )
    found = [
        first << _LOW | _bin_at(counts, rank)[0]
        for counts, (first, rank) in zip(lower, bins, strict=True)
    ]
    return torch.tensor(found, dtype=torch.int32).view(torch.float32).tolist()


def _count(
    blocks: Iterable[ReadParts], count: int, binned: Callable[[Tensor, int], Tensor], bins: int
) -> Tensor:
    """How many numbers of each tensor are in each bin: [N, bins]."""

    def counts(read: ReadParts) -> Tensor:
        bits = [part.abs().reshape(-1).view(torch.int32) for part in read()]
        found = [torch.bincount(binned(b, n), minlength=bins) for n, b in enumerate(bits)]
        return torch.stack(found)

    total = torch.zeros(count, bins, dtype=torch.int64)
    for found in in_order(counts, blocks):
        total += found
    return total


def _bin_at(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds a rank from the top, and the rank inside it."""
    above = counts.flip(0).cumsum(0)
    place = int((above < rank).sum())
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - before
