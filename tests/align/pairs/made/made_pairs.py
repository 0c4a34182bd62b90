"""Pairs of random tokens, held in memory, and what they are one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from made_samples import stored

from bc2.align.pairs.packed_pairs import PackedPairs
from bc2.align.pairs.pair_samples import PairSamples
from bc2.align.samples.sample import Sample
from bc2.data.loader import IGNORED
from bc2.data.pairs.pairs import PairTable


def drawn_pairs(
    count: int, longest: int, vocab: int, *, seed: int = 0
) -> list[tuple[Sample, Sample]]:
    """Pairs with a common prompt, of which answers have 1 to `longest` tokens."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        prompt = rng.integers(0, vocab, int(rng.integers(1, longest + 1)))
        both = []
        for _ in range(2):
            answer = rng.integers(0, vocab, int(rng.integers(1, longest + 1)))
            whole = np.concatenate([prompt, answer]).astype(np.int32)
            labels = np.where(np.arange(len(whole)) >= len(prompt), whole, IGNORED)[1:]
            weights = (labels != IGNORED).astype(np.float32)
            both.append(Sample(whole[:-1], labels.astype(np.int32), weights))
        pairs.append((both[0], both[1]))
    return pairs


def table_of(count: int, targets: npt.NDArray[np.float64] | None = None) -> PairTable:
    """A table of `count` pairs, of which pair k has the answers 2 k and 2 k + 1."""
    place = np.arange(count)
    none = np.full((count, 2), np.nan)
    said = none if targets is None else targets
    return PairTable(place, place, 2 * place, 2 * place + 1, np.zeros(count, np.int64), said, said)


def packed_pairs(
    pairs: list[tuple[Sample, Sample]], length: int, *, ends: bool,
    fields: Mapping[str, npt.NDArray[Any]] | None = None, seed: int = 0,
) -> PackedPairs:  # fmt: skip
    samples = stored([one for pair in pairs for one in pair])
    found = PairSamples.of(table_of(len(pairs)), samples, length, ends=ends)
    assert len(found) == len(pairs)
    entries = np.arange(len(pairs))
    sources = np.zeros(len(pairs), np.int64)
    return PackedPairs(entries, sources, length, seed, 2, found, ends, dict(fields or {}))
