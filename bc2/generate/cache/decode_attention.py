"""Attention of single new tokens to the blocks of their sequences, where these lie.

Blocks are taken in the order of memory, as a view of the cache, each with those tokens that attend
to it. No key is copied, and there are few calls, however many sequences there are.

Shapes:
    H  heads      G  key heads      K  channels of a head      C  queries
    N  blocks      S  tokens of a block      W  queries of a block      M  parts merged at once
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bc2.generate.cache.kv_cache import KVCache
from bc2.generate.cache.segment import Segment
from bc2.model.head_weight import at_least_fp32

#: The most calls in a layer.
MOST_SPANS = 12

#: What a call costs, and what each further query of a block costs, in blocks read.
CALL_COST, QUERY_COST = 32.0, 0.2

#: Parts that are merged at once in `_Merge`.
MERGED = 16


class SingleTokens:
    """Attention of single tokens to their sequences' blocks, where these lie."""

    def __init__(
        self,
        cache: KVCache,
        segments: Sequence[Segment],
        first: np.ndarray,
        decoding: Sequence[int],
    ):
        size = cache.size
        begins = np.array([cache.first_block(segments[i].start) for i in decoding])
        ends = np.array([segments[i].start // size + 1 for i in decoding])
        counts = ends - begins
        blocks = np.concatenate(
            [
                np.asarray(segments[i].blocks[begin:end], np.int64)
                for i, begin, end in zip(decoding, begins, ends, strict=True)
            ]
        )
        query = np.repeat(np.arange(len(decoding)), counts)
        number = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts - begins, counts)
        position = np.array([segments[i].start for i in decoding])[query]
        self.rows = cache.tensor(first[np.asarray(decoding)])
        self._all = len(decoding) == len(segments)
        order = np.argsort(blocks, kind="stable")
        place_in_block = _numbers_of_equal(blocks[order])
        widths = np.zeros(int(blocks.max()) + 1, np.int64)
        np.add.at(widths, blocks, 1)
        self._spans: list[_Span] = []
        entry = np.empty(len(blocks), np.int64)
        offset = 0
        for low, high in spans_of(widths):
            inside = order[slice(*np.searchsorted(blocks[order], [low, high]))]
            where = slice(*np.searchsorted(blocks[order], [low, high]))
            width = int(widths[low:high].max())
            row = blocks[inside] - low
            column = place_in_block[where]
            distance = number[inside] * size - position[inside]
            self._spans.append(_Span(cache, low, high, width, row, column, query[inside], distance))
            entry[inside] = offset + row * width + column
            offset += (high - low) * width
        self._merge = _Merge(cache, entry, counts)

    def __call__(
        self, q: Tensor, keys: Tensor, values: Tensor, slopes: Tensor | None
    ) -> Tensor:  # [C, H, K], fp32 or wider
        q = (q if self._all else q[self.rows]) * q.shape[-1] ** -0.5
        done = [span(q, keys, values, slopes) for span in self._spans]
        if len(done) == 1:
            return self._merge(*done[0])
        return self._merge(
            torch.cat([part for part, _ in done]), torch.cat([numbers for _, numbers in done], 1)
        )


def _numbers_of_equal(ordered: np.ndarray) -> np.ndarray:
    """Of an ascending array, the number of each element among its equals."""
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return np.arange(len(ordered)) - np.repeat(begins, np.diff(np.r_[begins, len(ordered)]))


def spans_of(widths: np.ndarray) -> list[tuple[int, int]]:
    """Few spans of blocks that hold all blocks with queries, and little else.

    Args:
        widths: queries of each block.
    """
    edges = np.flatnonzero(np.diff(widths)) + 1
    begins = np.r_[0, edges].tolist()
    ends = np.r_[edges, len(widths)].tolist()
    found: list[tuple[int, int, int]] = []
    for low, high in zip(begins, ends, strict=True):
        width = int(widths[low])
        if not width:
            continue
        found.append((low, high, width))
        while len(found) > 1 and _saved(found[-2], found[-1]) >= 0:
            found[-2:] = [_joined(found[-2], found[-1])]
    while len(found) > MOST_SPANS:
        best = max(range(1, len(found)), key=lambda i: _saved(found[i - 1], found[i]))
        found[best - 1 : best + 1] = [_joined(found[best - 1], found[best])]
    return [(low, high) for low, high, _ in found]


def _joined(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    return one[0], other[1], max(one[2], other[2])


def _saved(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """The cost of two spans above that of both in one."""

    def cost(span: tuple[int, int, int]) -> float:
        low, high, width = span
        return CALL_COST + (high - low) * (1 + QUERY_COST * (width - 1))

    return cost(one) + cost(other) - cost(_joined(one, other))


class _Span:
    """Consecutive blocks of the cache, each with up to W queries."""

    def __init__(
        self,
        cache: KVCache,
        low: int,
        high: int,
        width: int,
        row: np.ndarray,
        column: np.ndarray,
        query: np.ndarray,
        distance: np.ndarray,
    ):
        """`distance` is that of a block's first token to the query, at most 0."""
        self._low, self._high = low, high
        shape = high - low, width
        queries = np.zeros(shape, np.int64)
        queries[row, column] = query
        away = np.full(shape, 1, np.int64)  # places without a query see nothing
        away[row, column] = distance
        self._queries = cache.tensor(queries.reshape(-1))
        each = away[:, :, None] + np.arange(cache.size)
        unseen = each > 0
        if cache.window is not None:
            unseen |= each <= -cache.window
        self._unseen = cache.tensor(unseen)[:, None, :, None]  # [N, 1, W, 1, S]
        self._distance = cache.tensor(each.astype(np.float32))[:, None, :, None]

    def __call__(
        self, q: Tensor, keys: Tensor, values: Tensor, slopes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What each place attends to, not yet divided by its sum of exponentials.

        Returns:
            Σ exp(score - z) v, [N · W, H, K] in q's dtype; and z, the largest score of the place,
            and log Σ exp(score - z), as one tensor [2, N · W, H].
        """
        k, v = keys[self._low : self._high], values[self._low : self._high]
        blocks, groups, size, channels = k.shape
        width, heads = self._unseen.shape[2], q.shape[1]
        rows = q[self._queries].view(blocks, width, groups, heads // groups, channels)
        rows = rows.transpose(1, 2).reshape(blocks * groups, -1, channels)
        scores = torch.bmm(rows, k.reshape(-1, size, channels).transpose(1, 2))
        dtype = at_least_fp32(q.dtype)
        wide = scores.view(blocks, groups, width, -1, size).to(dtype)
        if slopes is not None:
            wide = wide.addcmul_(slopes.to(dtype).view(groups, 1, -1, 1), self._distance.to(dtype))
        wide = wide.masked_fill_(self._unseen, torch.finfo(dtype).min)
        top = wide.amax(-1, keepdim=True)
        weights = wide.sub_(top).exp_()
        total = weights.sum(-1)
        part = torch.bmm(
            weights.to(q.dtype).view(blocks * groups, -1, size), v.reshape(-1, size, channels)
        )
        part = part.view(blocks, groups, width, -1, channels)
        part = part.transpose(1, 2).reshape(blocks * width, heads, channels)
        numbers = torch.stack((top[..., 0], total.log_()))
        return part, numbers.transpose(2, 3).reshape(2, blocks * width, heads)


class _Merge:
    """Merges the parts of each query, at most MERGED at once and then the results of that."""

    def __init__(self, cache: KVCache, entry: np.ndarray, counts: np.ndarray):
        """`entry` holds the parts of all queries, `counts` how many each query has."""
        self._levels = []
        while True:
            groups = -(-counts // MERGED) if counts.max() > MERGED else np.ones_like(counts)
            within = np.repeat(np.cumsum(counts) - counts, counts)
            number = np.arange(len(entry)) - within
            wide = min(MERGED, int(counts.max()))
            first = np.repeat(np.cumsum(groups) - groups, counts)
            table = np.zeros((int(groups.sum()), wide), np.int64)
            empty = np.ones(table.shape, bool)
            table[first + number // MERGED, number % MERGED] = entry
            empty[first + number // MERGED, number % MERGED] = False
            mask = cache.tensor(empty)[..., None] if empty.any() else None
            self._levels.append((cache.tensor(table), mask))
            if len(table) == len(counts):
                return
            counts, entry = groups, np.arange(len(table))

    def __call__(self, part: Tensor, numbers: Tensor) -> Tensor:
        """From what `_Span` returns to the attention of each query: [C, H, K] in fp32 or wider."""
        top, log_sum = numbers
        for table, empty in self._levels:
            sums = (top + log_sum)[table]  # [C, M, H]
            if empty is not None:
                sums = sums.masked_fill_(empty, -torch.inf)
            total = sums.logsumexp(1)
            weights = (top[table] - total[:, None]).exp_()
            if empty is not None:
                weights = weights.masked_fill_(empty, 0.0)
            part = torch.einsum("cmh,cmhk->chk", weights, part[table].to(weights.dtype))
            top, log_sum = total, torch.zeros_like(total)
        return part
