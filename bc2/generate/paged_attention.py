"""Attention of new tokens to keys that lie in the blocks of a cache.

Softmax over a union of keys follows from softmax over its parts: with o the output and s the log
of the sum of exponentials of each part, the output over all is Σ exp(s - S) o with S = log Σ exp s
(FlashAttention, arXiv 2205.14135, section 3.1; "log-sum-exp merge"). So keys stay where they are,
and those that several sequences share are read once for all of them:

  own      A sequence's new tokens attend to each other, by the packed causal kernel.
  context  Pieces of prompts attend to earlier blocks. Blocks that the same sequences attend to
           are one part; parts of about one size are one call.
  decode   Single new tokens attend to their sequences' blocks. Blocks are taken in the order of
           memory, as a view; each with those tokens that attend to it.

Shapes:
    T  new tokens of all segments      P  segments      H  heads      G  key heads
    N  blocks      S  tokens of a block      K  channels of a head      C  queries of a call
    W  queries of a block      M  parts that are merged at once
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from bc2.generate.kv_cache import KVCache
from bc2.model.attention import PAD_TO, alibi_bias, padded_slots
from bc2.model.head_weight import at_least_fp32

#: The most calls of `_Decode` in a layer.
MOST_SPANS = 12

#: What a call costs, and what each further query of a block costs, in blocks read.
CALL_COST, QUERY_COST = 32.0, 0.2

#: Parts that are merged at once in `_Merge`.
MERGED = 16


@dataclass(frozen=True)
class Segment:
    """Consecutive new tokens of one sequence."""

    start: int
    """The position of the first: tokens before it, whose keys are in `blocks`."""
    length: int
    """New tokens, at least one."""
    blocks: Sequence[int]
    """Of the sequence, from its beginning to the last token that is stored."""
    stored: int = -1
    """How many of the new tokens, from the first on, are written into the cache; -1: all."""

    @property
    def num_stored(self) -> int:
        return self.length if self.stored < 0 else self.stored


class PagedStep:
    """The part of a cache in one forward pass: `bc2.model.transformer.AttentionCache`.

    Segments that share blocks which are written in this pass may follow each other in it: every
    layer stores all keys before it attends.
    """

    def __init__(self, cache: KVCache, segments: Sequence[Segment]):
        self.cache = cache
        self.device = cache.data.device
        lengths = np.array([s.length for s in segments], dtype=np.int64)
        first = np.cumsum(lengths) - lengths
        self.total = int(lengths.sum())
        self._starts = np.array([s.start for s in segments], dtype=np.int64)
        self.cu_seqlens = self._tensor(np.append(first, self.total)).int()
        self.max_seqlen = int(lengths.max())
        self._stores = _Stores(self, segments, first)
        single = [s.length == 1 and s.num_stored == 1 for s in segments]
        pieces = [i for i, is_single in enumerate(single) if not is_single]
        decoding = [i for i, is_single in enumerate(single) if is_single]
        self._own = _Own(self, segments, first, pieces) if pieces else None
        self._context = _context_calls(self, segments, first, pieces)
        self._decode = _Decode(self, segments, first, decoding) if decoding else None

    def starts(self) -> Tensor:
        """Tokens before each segment: int64 [P]."""
        return self._tensor(self._starts)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
        """Store the new keys and values, and attend to all up to each token.

        Args:
            q: [T, H, K], in the order of the segments.
            k, v: [T, G, K]; G divides H, and query head h has key head h // (H / G).
            slopes: ALiBi's, fp32 [H], or None.

        Returns:
            [T, H, K] in q's dtype.
        """
        self._stores.write(layer, k, v)
        keys, values = self.cache.layer(layer)
        if self._own is None and self._decode is not None:
            return self._decode(q, keys, values, slopes).to(q.dtype)
        dtype = at_least_fp32(q.dtype)
        out = torch.empty(q.shape, dtype=dtype, device=q.device)
        log_sum = torch.empty(q.shape[:2], dtype=dtype, device=q.device)
        if self._own is not None:
            self._own(q, k, v, slopes, out, log_sum)
        for call in self._context:
            call(q, keys, values, slopes, out, log_sum)
        if self._decode is not None:
            out[self._decode.rows] = self._decode(q, keys, values, slopes)
        return out.to(q.dtype)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


class _Stores:
    """Writes the new keys and values that are stored."""

    def __init__(self, step: PagedStep, segments: Sequence[Segment], first: np.ndarray):
        size = step.cache.size
        blocks: list[int] = []
        tokens, places = [], []
        for segment, begin in zip(segments, first.tolist(), strict=True):
            count = segment.num_stored
            if count:
                positions = np.arange(segment.start, segment.start + count)
                held = np.asarray(segment.blocks[segment.start // size :], dtype=np.int64)
                blocks.extend(held[positions // size - segment.start // size].tolist())
                places.append(positions % size)
                tokens.append(np.arange(begin, begin + count))
        self._cache = step.cache
        stored = sum(map(len, tokens))
        self._tokens = None
        self._rows = None
        if stored:
            where = step._tensor(np.array(blocks)), step._tensor(np.concatenate(places))
            self._rows = step.cache.rows_of(*where)
            if stored < step.total:
                self._tokens = step._tensor(np.concatenate(tokens))

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        if self._rows is not None:
            if self._tokens is not None:
                k, v = k[self._tokens], v[self._tokens]
            self._cache.write(layer, self._rows, k, v)


# ------------------------------------------------------------------------------------ kernels


def attend_part(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √K + bias) v, and the log of the sum of exponentials.

    Args:
        q: [B, H, C, K].
        k, v: [B, H, C', K].
        bias: broadcasts to [B, H, C, C'].
        causal: query i attends to keys 0 to i.

    Returns:
        [B, H, C, K] in q's dtype, and [B, H, C] in fp32 or wider.
    """
    if q.device.type == "cpu":
        if bias is not None:
            bias = bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, log_sum = flash(q, k, v, is_causal=causal, attn_mask=bias)
        return out, log_sum
    scores = (q @ k.transpose(-1, -2)).to(at_least_fp32(q.dtype)) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    log_sum = scores.logsumexp(-1)
    return (scores - log_sum[..., None]).exp().to(q.dtype) @ v, log_sum


def merge_into(rows: Tensor, part: Tensor, part_sum: Tensor, out: Tensor, log_sum: Tensor) -> None:
    """Add a part's keys to what tokens have attended to so far, in place.

    Args:
        rows: int64 [C], distinct.
        part, part_sum: [C, H, K] and [C, H], of the part.
        out, log_sum: [T, H, K] and [T, H], of the keys so far.
    """
    before = log_sum[rows]
    total = torch.logaddexp(before, part_sum.to(before.dtype))
    kept = out[rows] * (before - total).exp()[..., None]
    out[rows] = kept.addcmul_(part.to(out.dtype), (part_sum - total).exp()[..., None])
    log_sum[rows] = total


# -------------------------------------------------------------------------------- own tokens


class _Own:
    """The causal attention of each segment's tokens to each other."""

    def __init__(
        self,
        step: PagedStep,
        segments: Sequence[Segment],
        first: np.ndarray,
        pieces: Sequence[int],
    ):
        lengths = [segments[i].length for i in pieces]
        slots, self._groups = padded_slots(tuple(lengths))
        self._slots = slots.to(step.device)
        tokens = [np.arange(first[i], first[i] + segments[i].length) for i in pieces]
        self._tokens = step._tensor(np.concatenate(tokens))

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, out: Tensor, log_sum: Tensor
    ) -> None:
        share = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(share, 1) if share > 1 else x for x in (k, v))
        padded = sum(count * length for count, length in self._groups)
        q, k, v = (
            x.new_zeros(padded, *x.shape[1:]).index_copy_(0, self._slots, x[self._tokens])
            for x in (q, k, v)
        )
        done, sums = [], []
        start = 0
        for count, length in self._groups:
            span, shape = slice(start, start + count * length), (count, length, *q.shape[1:])
            a, b, c = (x[span].view(shape).transpose(1, 2) for x in (q, k, v))
            if slopes is None:
                part, part_sum = attend_part(a, b, c, causal=True)
            else:
                dtype = at_least_fp32(q.dtype)
                bias = alibi_bias(slopes, length, length, q.device, dtype)[None]
                part, part_sum = attend_part(a.to(dtype), b.to(dtype), c.to(dtype), bias)
            done.append(part.transpose(1, 2).flatten(0, 1))
            sums.append(part_sum.transpose(1, 2).flatten(0, 1))
            start = span.stop
        out[self._tokens] = torch.cat(done)[self._slots].to(out.dtype)
        log_sum[self._tokens] = torch.cat(sums)[self._slots].to(log_sum.dtype)


# ---------------------------------------------------------------------------- earlier blocks


@dataclass
class _Part:
    """Blocks that some segments attend to."""

    blocks: list[int]
    first: int
    """The position of their first token."""
    keys: int
    """Tokens in them before the segments."""
    tokens: np.ndarray
    """The new tokens that attend to them."""
    positions: np.ndarray


def _context_calls(
    step: PagedStep,
    segments: Sequence[Segment],
    first: np.ndarray,
    pieces: Sequence[int],
) -> list[_ContextCall]:
    """Calls for the blocks before pieces of prompts.

    A token's parts are numbered in the order of its sequence. Parts of one number and of about
    one size are one call, so no token is twice in a call.
    """
    groups: dict[tuple[int, int, int], list[_Part]] = {}
    for number, part in _parts(step.cache.size, segments, first, pieces):
        keys = rounded(len(part.blocks) * step.cache.size)
        groups.setdefault((number, rounded(len(part.tokens)), keys), []).append(part)
    return [_ContextCall(step, parts, *key[1:]) for key, parts in sorted(groups.items())]


def _parts(
    size: int,
    segments: Sequence[Segment],
    first: np.ndarray,
    pieces: Sequence[int],
) -> list[tuple[int, _Part]]:
    """The parts, each with its number in the order of its sequences."""
    # A block that is not full before a segment is its own: others attend to other keys of it.
    entries: dict[int, list[tuple[int, int]]] = {}
    users: dict[tuple[int, int], list[int]] = {}
    for i in pieces:
        start = segments[i].start
        count = -(-start // size)
        entries[i] = [
            (block, min(size, start - at * size))
            for at, block in enumerate(segments[i].blocks[:count])
        ]
        for entry in entries[i]:
            users.setdefault(entry, []).append(i)
    found = []
    for i in pieces:
        at = 0
        runs = groupby(entries[i], key=lambda entry: users[entry])
        for number, (sharing, run) in enumerate(runs):
            held = list(run)
            if sharing[0] == i:
                spans = [(first[j], segments[j].start, segments[j].length) for j in sharing]
                tokens = np.concatenate([np.arange(f, f + n) for f, _, n in spans])
                positions = np.concatenate([np.arange(s, s + n) for _, s, n in spans])
                keys = sum(filled for _, filled in held)
                blocks = [block for block, _ in held]
                found.append((number, _Part(blocks, at * size, keys, tokens, positions)))
            at += len(held)
    return found


def rounded(count: int) -> int:
    """`count`, or up to a third more, so that there are few sizes: 64, 128, 192, 256, 384, ..."""
    step = PAD_TO
    while step * 4 < count:
        step *= 2
    return -(-count // step) * step


class _ContextCall:
    """Attention of new tokens to parts of the context of about one size."""

    def __init__(self, step: PagedStep, parts: Sequence[_Part], queries: int, keys: int):
        size = step.cache.size
        shape = len(parts), queries
        tokens = np.zeros(shape, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        wanted = np.zeros(shape, dtype=bool)
        blocks = np.zeros((len(parts), -(-keys // size)), dtype=np.int64)
        filled = np.array([part.keys for part in parts])
        for row, part in enumerate(parts):
            tokens[row, : len(part.tokens)] = part.tokens
            positions[row, : len(part.tokens)] = part.positions
            wanted[row, : len(part.tokens)] = True
            blocks[row, : len(part.blocks)] = part.blocks
            blocks[row, len(part.blocks) :] = part.blocks[0]  # masked, but finite
        place = np.arange(blocks.shape[1] * size)
        after = place[None] - filled[:, None]
        self._blocks = step._tensor(blocks.reshape(-1))
        self._shape = blocks.shape
        self._tokens = step._tensor(tokens)
        self._wanted = step._tensor(np.flatnonzero(wanted))
        self._rows = step._tensor(tokens[wanted])
        self._is_full = bool((after < 0).all())
        self._beyond = step._tensor(after >= 0)  # [B, C']
        # ALiBi as the distance to the end of the part, which is the same for all queries; the
        # rest of the distance changes the sum alone.
        self._after = step._tensor(after.astype(np.float32))
        end = np.array([part.first + part.keys for part in parts])
        self._before = step._tensor((end[:, None] - positions)[wanted].astype(np.float32))

    def __call__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        slopes: Tensor | None,
        out: Tensor,
        log_sum: Tensor,
    ) -> None:
        heads, channels = q.shape[1:]
        k, v = (self._gathered(x) for x in (keys, values))
        share = heads // k.shape[1]
        count, queries = self._tokens.shape
        # Query heads of one key head are as further queries: [B, G, H / G · C, K].
        rows = q[self._tokens].view(count, queries, k.shape[1], share, channels)
        rows = rows.permute(0, 2, 3, 1, 4).reshape(count, k.shape[1], share * queries, channels)
        bias = self._bias(slopes, q.dtype, share, queries)
        if slopes is not None:
            rows, k, v = (x.to(at_least_fp32(q.dtype)) for x in (rows, k, v))
        part, part_sum = attend_part(rows, k, v, bias)
        part = part.view(count, heads, queries, channels).transpose(1, 2).flatten(0, 1)
        part_sum = part_sum.view(count, heads, queries).transpose(1, 2).flatten(0, 1)
        part, part_sum = part[self._wanted], part_sum[self._wanted]
        if slopes is not None:
            part_sum = part_sum + slopes * self._before[:, None]
        merge_into(self._rows, part, part_sum, out, log_sum)

    def _gathered(self, x: Tensor) -> Tensor:  # [N, G, S, K] -> [B, G, C', K]
        blocks = x[self._blocks].view(*self._shape, *x.shape[1:])
        return blocks.transpose(1, 2).flatten(2, 3)

    def _bias(
        self, slopes: Tensor | None, dtype: torch.dtype, share: int, queries: int
    ) -> Tensor | None:
        """What is added to the scores, or None: [B, 1, 1, C'], with ALiBi [B, G, H / G · C, C']."""
        if slopes is None:
            if self._is_full:
                return None
            return torch.zeros_like(self._after).masked_fill(self._beyond, -torch.inf)[
                :, None, None
            ]
        bias = (slopes[:, None] * self._after[:, None]).masked_fill(
            self._beyond[:, None], -torch.inf
        )
        count, heads, keys = bias.shape
        bias = bias.view(count, heads // share, share, 1, keys).to(at_least_fp32(dtype))
        return bias.expand(-1, -1, -1, queries, -1).flatten(2, 3)


# ------------------------------------------------------------------------------------- decode


class _Decode:
    """Attention of single tokens to their sequences' blocks, where these lie."""

    def __init__(
        self,
        step: PagedStep,
        segments: Sequence[Segment],
        first: np.ndarray,
        decoding: Sequence[int],
    ):
        size = step.cache.size
        counts = np.array([segments[i].start // size + 1 for i in decoding])
        blocks = np.concatenate(
            [
                np.asarray(segments[i].blocks[:n], np.int64)
                for i, n in zip(decoding, counts, strict=True)
            ]
        )
        query = np.repeat(np.arange(len(decoding)), counts)
        number = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
        position = np.array([segments[i].start for i in decoding])[query]
        self.rows = step._tensor(first[np.asarray(decoding)])
        self._all = len(decoding) == step.total
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
            self._spans.append(_Span(step, low, high, width, row, column, query[inside], distance))
            entry[inside] = offset + row * width + column
            offset += (high - low) * width
        self._merge = _Merge(step, entry, counts)

    def __call__(
        self, q: Tensor, keys: Tensor, values: Tensor, slopes: Tensor | None
    ) -> Tensor:  # [C, H, K], fp32 or wider
        q = q if self._all else q[self.rows]
        done = [span(q, keys, values, slopes) for span in self._spans]
        if len(done) == 1:
            return self._merge(*done[0])
        return self._merge(torch.cat([out for out, _ in done]), torch.cat([s for _, s in done]))


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
        step: PagedStep,
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
        self._queries = step._tensor(queries.reshape(-1))
        each = away[:, :, None] + np.arange(step.cache.size)
        self._later = step._tensor(each > 0)[:, None, :, None]  # [N, 1, W, 1, S]
        self._distance = step._tensor(each.astype(np.float32))[:, None, :, None]

    def __call__(
        self, q: Tensor, keys: Tensor, values: Tensor, slopes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The attention of each place, [N · W, H, K], and its sum of exponentials [N · W, H]."""
        k, v = keys[self._low : self._high], values[self._low : self._high]
        blocks, groups, size, channels = k.shape
        width, heads = self._later.shape[2], q.shape[1]
        rows = q[self._queries].view(blocks, width, groups, heads // groups, channels)
        rows = rows.transpose(1, 2).reshape(blocks * groups, -1, channels)
        scores = torch.bmm(rows, k.reshape(-1, size, channels).transpose(1, 2))
        dtype = at_least_fp32(q.dtype)
        wide = scores.view(blocks, groups, width, -1, size).to(dtype).mul_(channels**-0.5)
        if slopes is not None:
            wide = wide.addcmul_(slopes.to(dtype).view(groups, 1, -1, 1), self._distance.to(dtype))
        wide = wide.masked_fill_(self._later, torch.finfo(dtype).min)
        top = wide.amax(-1, keepdim=True)
        weights = wide.sub_(top).exp_()
        total = weights.sum(-1)
        part = torch.bmm(
            weights.to(q.dtype).view(blocks * groups, -1, size), v.reshape(-1, size, channels)
        )
        part = part.view(blocks, groups, width, -1, channels).to(dtype) / total[..., None]
        log_sum = top[..., 0] + total.log()
        part = part.transpose(1, 2).reshape(blocks * width, heads, channels)
        return part, log_sum.transpose(1, 2).reshape(blocks * width, heads)


class _Merge:
    """Merges the parts of each query, at most MERGED at once and then the results of that."""

    def __init__(self, step: PagedStep, entry: np.ndarray, counts: np.ndarray):
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
            mask = step._tensor(empty)[..., None] if empty.any() else None
            self._levels.append((step._tensor(table), mask))
            if len(table) == len(counts):
                return
            counts, entry = groups, np.arange(len(table))

    def __call__(self, part: Tensor, log_sum: Tensor) -> Tensor:
        """[N · W, H, K] and [N · W, H] -> [C, H, K]."""
        for table, empty in self._levels:
            sums = log_sum[table]  # [C, M, H]
            if empty is not None:
                sums = sums.masked_fill_(empty, -torch.inf)
            log_sum = sums.logsumexp(1)
            weights = (sums - log_sum[:, None]).exp_()
            part = torch.einsum("cmh,cmhk->chk", weights, part[table])
        return part
