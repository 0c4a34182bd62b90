"""Attention of pieces of prompts: to their own tokens, and to the blocks before them.

A piece's tokens attend to each other by the packed causal kernel. Blocks that the same pieces
attend to are one part, read once for all of them; parts of about one size are one call.

Shapes:
    T  new tokens of all segments      H  heads      G  key heads      K  channels of a head
    B  parts of a call      C  queries of a part      C'  its keys
    N  blocks      S  tokens of a block
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from bc2.generate.cache.kv_cache import KVCache
from bc2.generate.cache.partial_attention import attend_part, merge_into
from bc2.generate.cache.segment import Segment
from bc2.model.alibi_channels import AlibiChannels, alibi_channels
from bc2.model.attention import each_for, padded_slots, window_mask
from bc2.model.attention_sizes import PAD_TO
from bc2.model.head_weight import at_least_fp32

#: Added to the score of a key that is not seen: exp of it is 0 beside any key that is.
UNSEEN = -1e30


class OwnTokens:
    """The causal attention of each segment's tokens to each other."""

    def __init__(
        self,
        cache: KVCache,
        segments: Sequence[Segment],
        first: np.ndarray,
        pieces: Sequence[int],
    ):
        lengths = [segments[i].length for i in pieces]
        slots, self._groups = padded_slots(tuple(lengths))
        self._slots = slots.to(cache.data.device)
        tokens = [np.arange(first[i], first[i] + segments[i].length) for i in pieces]
        self._tokens = cache.tensor(np.concatenate(tokens))
        self._window = cache.window
        #: By length; for all layers of the step.
        self._channels: dict[int, AlibiChannels] = {}

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, out: Tensor, log_sum: Tensor
    ) -> None:
        k, v = (each_for(x, q.shape[1]) for x in (k, v))
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
            if slopes is not None:
                part, part_sum = self._attend_alibi(a, b, c, slopes)
            elif self._window is not None and self._window < length:
                mask = window_mask(length, self._window, q.dtype, q.device)
                part, part_sum = attend_part(a, b, c, mask)
            else:
                part, part_sum = attend_part(a, b, c, causal=True)
            done.append(part.transpose(1, 2).flatten(0, 1))
            sums.append(part_sum.transpose(1, 2).flatten(0, 1))
            start = span.stop
        out[self._tokens] = torch.cat(done)[self._slots].to(out.dtype)
        log_sum[self._tokens] = torch.cat(sums)[self._slots].to(log_sum.dtype)

    def _attend_alibi(
        self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`attend_part` of pieces of one length [B, H, C, K], in fp32 or wider."""
        size, dtype = q.shape[-1], at_least_fp32(q.dtype)
        if q.shape[2] not in self._channels:
            positions = torch.arange(q.shape[2], device=q.device)
            self._channels[q.shape[2]] = alibi_channels(slopes, positions, size, dtype)
        channels = self._channels[q.shape[2]]
        q, k, v = (x.transpose(1, 2).to(dtype) for x in (q, k, v))
        joined = (x.transpose(1, 2) for x in channels.join(q, k, v))
        part, part_sum = attend_part(*joined, causal=True, scale=channels.scale)
        return part[..., :size], part_sum


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


def context_calls(
    cache: KVCache,
    segments: Sequence[Segment],
    first: np.ndarray,
    pieces: Sequence[int],
) -> list[ContextCall]:
    """Calls for the blocks before pieces of prompts.

    A token's parts are numbered in the order of its sequence. Parts of one number and of about
    one size are one call, so no token is twice in a call.
    """
    groups: dict[tuple[int, int, int], list[_Part]] = {}
    for number, part in _parts(cache, segments, first, pieces):
        keys = rounded(len(part.blocks) * cache.size)
        groups.setdefault((number, rounded(len(part.tokens)), keys), []).append(part)
    return [ContextCall(cache, parts, *key[1:]) for key, parts in sorted(groups.items())]


def _parts(
    cache: KVCache,
    segments: Sequence[Segment],
    first: np.ndarray,
    pieces: Sequence[int],
) -> list[tuple[int, _Part]]:
    """The parts, each with its number in the order of its sequences."""
    size = cache.size
    # A block that is not full before a segment is its own: others attend to other keys of it.
    entries: dict[int, list[tuple[int, int]]] = {}
    users: dict[tuple[int, int], list[int]] = {}
    for i in pieces:
        start = segments[i].start
        count = -(-start // size)
        entries[i] = [
            (block, min(size, start - at * size))
            for at, block in enumerate(segments[i].blocks[:count])
        ][cache.first_block(start) :]
        for entry in entries[i]:
            users.setdefault(entry, []).append(i)
    found = []
    for i in pieces:
        at = cache.first_block(segments[i].start)
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


class ContextCall:
    """Attention of new tokens to parts of the context of about one size."""

    def __init__(self, cache: KVCache, parts: Sequence[_Part], queries: int, keys: int):
        size = cache.size
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
        self._blocks = cache.tensor(blocks.reshape(-1))
        self._shape = blocks.shape
        self._tokens = cache.tensor(tokens)
        self._wanted = cache.tensor(np.flatnonzero(wanted))
        self._rows = cache.tensor(tokens[wanted])
        self._is_full = bool((after < 0).all())
        self._beyond = cache.tensor(after >= 0)  # [B, C']
        # ALiBi as the distance to the end of the part, which is the same for all queries; the
        # rest of the distance changes the sum alone.
        self._after = cache.tensor(after.astype(np.float32))
        #: What no query at a place may see of a window, or None: [B, C, C'].
        self._passed: Tensor | None = None
        if cache.window is not None:
            keys_at = np.array([part.first for part in parts])[:, None, None] + place
            self._passed = cache.tensor(keys_at <= positions[:, :, None] - cache.window)
        end = np.array([part.first + part.keys for part in parts])
        self._before = cache.tensor((end[:, None] - positions)[wanted].astype(np.float32))

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
        part = part.reshape(count, heads, queries, channels).transpose(1, 2).flatten(0, 1)
        part_sum = part_sum.reshape(count, heads, queries).transpose(1, 2).flatten(0, 1)
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
        """What is added to the scores, or None.

        [B, 1, 1, C'], with a window [B, 1, H / G · C, C'], with ALiBi [B, G, H / G · C, C'].
        """
        if self._passed is not None:
            # Finite: a token may see nothing of a part, which then counts nothing.
            hidden = (self._passed | self._beyond[:, None])[:, None]
            bias = torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, UNSEEN)
            return bias.repeat(1, 1, share, 1)
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
