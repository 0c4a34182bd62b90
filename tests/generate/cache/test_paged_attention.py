"""Attention over a cache is softmax over all earlier tokens, wherever their keys lie."""

import math
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bc2.generate.cache.decode_attention import MOST_SPANS, spans_of
from bc2.generate.cache.kv_cache import KVCache
from bc2.generate.cache.paged_attention import PagedStep
from bc2.generate.cache.partial_attention import attend_by_products, attend_part
from bc2.generate.cache.segment import Segment
from bc2.model.attention import alibi_slopes
from bc2.train.peak import allocated_peak

LAYERS, LAYER = 2, 1


@dataclass
class Text:
    """A sequence: the keys and values of all its tokens, and its new ones."""

    keys: torch.Tensor  # [L, G, K]
    values: torch.Tensor
    start: int
    stored: int
    blocks: list[int]
    shared: int
    """Blocks that are those of another text."""

    @property
    def length(self):
        return len(self.keys) - self.start


class World:
    """Texts over one cache, in which blocks that nobody uses hold NaN."""

    def __init__(self, seed, *, dtype, size=4, heads=4, groups=2, channels=8, blocks=400):
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.size, self.heads, self.groups = dtype, size, heads, groups
        self.channels = channels
        self.free = list(range(blocks))
        self.cache = KVCache(
            blocks,
            size,
            layers=LAYERS,
            heads=groups,
            head_dim=channels,
            dtype=dtype,
            device=torch.device("cpu"),
            poison=True,
        )
        self.texts = []

    def scatter(self):
        self.rng.shuffle(self.free)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def add(self, start, length, *, parent=None, shared=0, stored=None):
        """A text with `start` tokens in the cache and `length` new ones.

        Args:
            shared: it begins with so many blocks of the text `parent`.
            stored: how many of the new tokens are stored; None: all.
        """
        stored = length if stored is None else stored
        end = start + stored
        keys, values = (self.normal(start + length, self.groups, self.channels) for _ in "kv")
        blocks = []
        if parent is not None:
            keys[: shared * self.size] = parent.keys[: shared * self.size]
            values[: shared * self.size] = parent.values[: shared * self.size]
            blocks = parent.blocks[:shared]
        own = -(-end // self.size) - shared
        taken, self.free = self.free[:own], self.free[own:]
        self.cache.clear(taken)
        text = Text(keys, values, start, stored, [*blocks, *taken], shared)
        self._fill(self.cache.data, text, shared * self.size, start)
        self.texts.append(text)
        return text

    def _fill(self, data, text, begin, end):
        for at in range(begin, end):
            place = text.blocks[at // self.size], slice(None), at % self.size
            data[LAYER, 0][place] = text.keys[at]
            data[LAYER, 1][place] = text.values[at]

    def attend(self, slopes=None):
        """What `PagedStep` makes of the texts' new tokens, and what it is by definition."""
        segments = [
            Segment(
                text.start,
                text.length,
                text.blocks,
                -1 if text.stored == text.length else text.stored,
            )
            for text in self.texts
        ]
        expected_cache = self.cache.data.clone()
        for text in self.texts:
            self._fill(expected_cache, text, text.start, text.start + text.stored)
        step = PagedStep(self.cache, segments)
        assert step.total == sum(text.length for text in self.texts)
        assert step.starts().tolist() == [text.start for text in self.texts]
        assert step.cu_seqlens.diff().tolist() == [text.length for text in self.texts]
        queries = [self.normal(text.length, self.heads, self.channels) for text in self.texts]
        keys, values = (
            torch.cat([getattr(text, which)[text.start :] for text in self.texts])
            for which in ("keys", "values")
        )
        found = step.attend(LAYER, torch.cat(queries), keys, values, slopes)
        torch.testing.assert_close(self.cache.data, expected_cache, rtol=0, atol=0, equal_nan=True)
        expected = [self._expected(*each, slopes) for each in zip(self.texts, queries, strict=True)]
        return found, torch.cat(expected)

    def _expected(self, text, q, slopes):
        share = self.heads // self.groups
        k, v = (x.double().repeat_interleave(share, 1) for x in (text.keys, text.values))
        scores = torch.einsum("qhk,thk->hqt", q.double(), k) / math.sqrt(self.channels)
        distance = torch.arange(len(k)) - torch.arange(text.start, len(k))[:, None]
        if slopes is not None:
            scores += slopes.double()[:, None, None] * distance
        weights = scores.masked_fill(distance > 0, -math.inf).softmax(-1)
        return torch.einsum("hqt,thk->qhk", weights, v)

    def check(self, slopes=None, scale=1.0):
        found, expected = self.attend(slopes)
        assert found.dtype == self.dtype
        # A score of size `scale` is known to a rounding of that.
        limit = LIMITS[self.dtype] * scale
        torch.testing.assert_close(found.double(), expected, rtol=limit, atol=limit)


LIMITS = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 3e-2}

#: Query heads and key heads. ALiBi's slopes of four heads are powers of two, of twelve not.
HEADS = [(4, 4), (4, 2), (4, 1), (12, 12), (12, 4), (12, 1)]

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def mixed(seed, dtype, *, heads=4, groups=2):
    """Texts of all kinds: pieces, single tokens, shared beginnings, tokens that are not stored."""
    world = World(
        seed, dtype=dtype, heads=heads, groups=groups, size=random.Random(seed).choice([1, 4, 16])
    )
    rng, size = world.rng, world.size
    if rng.random() < 0.7:
        world.scatter()
    for _ in range(rng.randint(1, 9)):
        parent, shared = None, 0
        if world.texts and rng.random() < 0.6:
            parent = rng.choice(world.texts)
            shared = rng.randint(0, (parent.start + parent.stored) // size)
        kind = rng.choice(["piece", "single", "score"])
        start = shared * size + (0 if kind == "score" else rng.randint(0, 3 * size))
        length = 1 if kind == "single" else rng.randint(1, 70)
        stored = rng.randint(0, length // size) * size if kind == "score" else length
        world.add(start, length, parent=parent, shared=shared, stored=stored)
    return world


@pytest.mark.parametrize("alibi", [False, True], ids=["rope", "alibi"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixes_of_texts(dtype, alibi):
    for seed in range(6):
        heads, groups = HEADS[seed % 6]
        world = mixed(seed, dtype, heads=heads, groups=groups)
        world.check(alibi_slopes(heads) if alibi else None)


@pytest.mark.slow
@pytest.mark.parametrize("alibi", [False, True], ids=["rope", "alibi"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixes_of_texts_soak(dtype, alibi):
    for seed in range(6, 300):
        heads, groups = HEADS[seed % 6]
        world = mixed(seed, dtype, heads=heads, groups=groups)
        world.check(alibi_slopes(heads) if alibi else None)


@pytest.mark.parametrize("alibi", [False, True], ids=["rope", "alibi"])
def test_single_tokens_that_share_a_beginning(alibi):
    """Forks: each has a last block of its own, and all read the others."""
    world = World(1, dtype=torch.float64)
    world.scatter()
    first = world.add(22, 1)
    for _ in range(5):
        world.add(22, 1, parent=first, shared=5)
    for start in (0, 3, 4, 15, 16, 17):  # of a block of four: empty, full, and just begun
        world.add(start, 1)
    world.check(alibi_slopes(4) if alibi else None)


@pytest.mark.parametrize("alibi", [False, True], ids=["rope", "alibi"])
@pytest.mark.parametrize("blocks", [16, 17, 256, 257, 300])
def test_parts_of_long_texts_are_merged(blocks, alibi):
    """There are more parts than are merged at once, and more than two rounds of that."""
    world = World(2, dtype=torch.float64, size=1, groups=1, heads=2, channels=2)
    long = world.add(blocks - 1, 1)
    world.add(blocks - 1, 1, parent=long, shared=blocks - 1)
    world.add(2, 1)
    world.check(alibi_slopes(2) if alibi else None)


def test_pieces_that_share_blocks_written_in_the_same_pass():
    world = World(3, dtype=torch.float64)
    first = world.add(0, 30, stored=24)
    for shared in (6, 6, 3, 1):
        world.add(shared * 4, 11, parent=first, shared=shared, stored=0)
    second = world.add(8, 17, parent=first, shared=2)
    world.add(24, 1, parent=second, shared=6)
    world.check()
    world.check(alibi_slopes(4))


def test_a_text_that_is_not_stored_needs_no_blocks():
    world = World(4, dtype=torch.float64)
    world.add(0, 9, stored=0)
    world.add(0, 1, stored=0)
    world.check()
    assert world.cache.data.isnan().all()


@pytest.mark.parametrize("scale", [30.0, 1e-3])
def test_large_and_small_scores(scale):
    world = World(5, dtype=torch.float32)
    world.scatter()
    for start in (9, 40, 3):
        text = world.add(start, 1)
        world.add(start // 4 * 4, 20, parent=text, shared=start // 4)
    for text in world.texts:
        text.keys *= scale
    world.cache.data[LAYER, 0] *= scale
    world.check(scale=max(scale, 1.0))


# ------------------------------------------------------------------------------------- spans


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, 9]), min_size=1, max_size=600))
def test_spans_hold_every_block_with_queries_once(widths):
    widths = np.array([*widths, 1])
    spans = spans_of(widths)
    assert len(spans) <= MOST_SPANS
    inside = Counter(block for low, high in spans for block in range(low, high))
    assert all(count == 1 for count in inside.values())
    assert set(np.flatnonzero(widths)) <= inside.keys()
    assert spans == sorted(spans)


def test_spans_leave_out_long_stretches_that_nobody_reads():
    widths = np.zeros(10_000, np.int64)
    widths[[3, 4, 9_000]] = 1
    assert spans_of(widths) == [(3, 5), (9_000, 9_001)]


class Calls(TorchDispatchMode):
    """Counts the calls of matrix products and of attention."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in ("bmm", "mm.", "attention"))
        return func(*args, **(kwargs or {}))


def test_a_decode_step_makes_a_bounded_number_of_calls():
    """Sequences whose blocks lie in many places, with others between them."""
    world = World(6, dtype=torch.float32, size=2, blocks=9000)
    first = world.add(41, 1)
    for number in range(30):
        del world.free[: 200 if number % 2 else 3]
        world.add(41, 1, parent=first, shared=20 if number % 3 else 0)
    with Calls() as calls:
        world.check()
    mine = calls.count
    # The reference makes two a text; a span makes two, and each round of merging one.
    assert mine <= 2 * 31 + 2 * MOST_SPANS + 3


# ------------------------------------------------------------------------------------- kernel


@pytest.mark.parametrize("kernel", [attend_part, attend_by_products])
@pytest.mark.parametrize(("causal", "biased"), [(False, False), (True, False), (False, True)])
def test_a_part_and_its_sum_of_exponentials(kernel, causal, biased):
    q, k, v = torch.randn(
        3, 2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    bias = torch.randn(2, 1, 1, 5, dtype=torch.float64) if biased else None
    out, log_sum = kernel(q, k, v, bias, causal=causal)
    scores = q @ k.transpose(-1, -2) / math.sqrt(8)
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores + torch.full((5, 5), -math.inf).triu(1)
    torch.testing.assert_close(out, scores.softmax(-1) @ v)
    torch.testing.assert_close(log_sum, scores.logsumexp(-1))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2.2), (torch.bfloat16, 2.2)])
def test_products_hold_the_scores_at_most_twice(dtype, most):
    q, k, v = (torch.zeros(1, 4, 256, 8, dtype=dtype) for _ in range(3))
    peak = allocated_peak(lambda: attend_by_products(q, k, v, causal=True), [])
    assert peak < most * 4 * 256 * 256 * 4
