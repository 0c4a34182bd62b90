"""A micro-batch of made pairs, of the kind that takes the most memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.align.pairs.pair_samples import with_end
from bc2.align.pairs.preference_config import PAIRS, PreferenceConfig
from bc2.align.samples.packed_batch import make_batch
from bc2.align.samples.sample import Sample
from bc2.data.loader import Batch


def example_pairs(
    vocab_size: int,
    config: PreferenceConfig,
    rows: int,
    rng: np.random.Generator,
    *,
    ends: bool,
    fields: Mapping[str, npt.DTypeLike],
) -> Batch:
    """Full rows of one pair each.

    Args:
        ends: see `bc2.align.pairs.packed_pairs.PackedPairs.ends`.
        fields: names and types of the sample fields, which are 0.
    """
    half = config.sequence_length // 2
    packed = [[_drawn(half - ends, vocab_size, rng) for _ in range(2)] for _ in range(rows)]
    if ends:
        packed = [[with_end(sample) for sample in row] for row in packed]
    batch = make_batch(packed, config.sequence_length, 0)
    zeros: dict[str, npt.NDArray[Any]] = {
        name: np.zeros(2 * rows, dtype) for name, dtype in fields.items()
    }
    return replace(
        batch, sample_fields=zeros, extra_weights={**batch.extra_weights, PAIRS: float(rows)}
    )


def _drawn(length: int, vocab_size: int, rng: np.random.Generator) -> Sample:
    tokens, labels = (rng.integers(0, vocab_size, length, np.int32) for _ in range(2))
    return Sample(tokens, labels, np.ones(length, np.float32))
