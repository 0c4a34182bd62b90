"""Samples of random tokens, held in memory as `bc2.align.samples.sample_store` maps them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bc2.align.samples.sample import Sample
from bc2.align.samples.sample_store import Samples
from bc2.align.sft.packed_conversations import PackedSamples
from bc2.data.loader import IGNORED


def drawn(
    count: int, longest: int, vocab: int, *, weighted: bool = False, seed: int = 0
) -> list[Sample]:
    """Samples of which about half of the labels are learnt, the last always."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(1, longest + 1))
        labels = rng.integers(0, vocab, length).astype(np.int32)
        labels[:-1][rng.random(length - 1) < 0.5] = IGNORED
        weights = rng.uniform(0.25, 2.0, length) if weighted else np.ones(length)
        weights = np.where(labels == IGNORED, 0.0, weights).astype(np.float32)
        made.append(Sample(rng.integers(0, vocab, length).astype(np.int32), labels, weights))
    return made


def stored(samples: Sequence[Sample], *, weighted: bool = False) -> Samples:
    lengths = np.array([len(one.tokens) for one in samples], np.int32)
    return Samples(
        lengths,
        np.array([one.trained for one in samples], np.int32),
        np.arange(len(samples)),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([one.tokens for one in samples]),
        np.concatenate([one.labels for one in samples]),
        np.concatenate([one.weights for one in samples]) if weighted else None,
        (),
        (),
        (),
    )


def packed(
    samples: Sequence[Sample], length: int, *, weighted: bool = False, by_sample: bool = False
) -> PackedSamples:
    sources = np.zeros(len(samples), np.int64)
    entries = np.arange(len(samples))
    store = stored(samples, weighted=weighted)
    return PackedSamples(entries, sources, length, 0, 2, store, by_sample)
