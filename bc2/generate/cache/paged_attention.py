"""Attention of new tokens to keys that lie in the blocks of a cache.

Keys stay where they are, and those that several sequences share are read once for all of them:
`prompt_attention` for pieces of prompts, `decode_attention` for single tokens, each in parts
that `partial_attention` merges.

Shapes:
    T  new tokens of all segments      P  segments      H  heads      G  key heads
    K  channels of a head
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bc2.generate.cache.decode_attention import SingleTokens
from bc2.generate.cache.kv_cache import KVCache
from bc2.generate.cache.prompt_attention import OwnTokens, context_calls
from bc2.generate.cache.segment import Segment
from bc2.model.head_weight import at_least_fp32


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
        self._starts = cache.tensor(np.array([s.start for s in segments], dtype=np.int64))
        self.cu_seqlens = cache.tensor(np.append(first, self.total)).int()
        self.max_seqlen = int(lengths.max())
        self._stores = _Stores(cache, segments, first)
        single = [s.length == 1 and s.num_stored == 1 for s in segments]
        pieces = [i for i, is_single in enumerate(single) if not is_single]
        decoding = [i for i, is_single in enumerate(single) if is_single]
        self._own = OwnTokens(cache, segments, first, pieces) if pieces else None
        self._context = context_calls(cache, segments, first, pieces)
        self._decode = SingleTokens(cache, segments, first, decoding) if decoding else None

    def starts(self) -> Tensor:
        """Tokens before each segment: int64 [P]."""
        return self._starts

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
        if slopes is not None:
            slopes = slopes.to(at_least_fp32(q.dtype))
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


class _Stores:
    """Writes the new keys and values that are stored."""

    def __init__(self, cache: KVCache, segments: Sequence[Segment], first: np.ndarray):
        size = cache.size
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
        self._cache = cache
        stored = sum(map(len, tokens))
        self._tokens = None
        self._rows = None
        if stored:
            where = cache.tensor(np.array(blocks)), cache.tensor(np.concatenate(places))
            self._rows = cache.rows_of(*where)
            if stored < sum(segment.length for segment in segments):
                self._tokens = cache.tensor(np.concatenate(tokens))

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        if self._rows is not None:
            if self._tokens is not None:
                k, v = k[self._tokens], v[self._tokens]
            self._cache.write(layer, self._rows, k, v)
