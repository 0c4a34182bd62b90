"""Conversations packed into rows, each a sample of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bc2.align.samples.packed_batch import make_batch
from bc2.align.samples.packed_rows import PackedRows
from bc2.align.samples.sample import Sample
from bc2.align.samples.sample_store import Samples
from bc2.data.loader import Batch

if TYPE_CHECKING:
    from bc2.align.sft.sft_config import SftConfig


def example_batch(vocab_size: int, config: SftConfig, rows: int, rng: np.random.Generator) -> Batch:
    """Rows of one sample each, all of which is trained: what takes the most memory."""
    shape = (rows, config.sequence_length)
    tokens, labels = (rng.integers(0, vocab_size, shape, np.int32) for _ in range(2))
    weights = np.ones(shape, np.float32)
    samples = [[Sample(*row)] for row in zip(tokens, labels, weights, strict=True)]
    return make_batch(samples, config.sequence_length, 0, weighted=config.mean == "samples")


@dataclass(frozen=True)
class PackedSamples(PackedRows):
    """All rows of a run, by their number."""

    samples: Samples
    by_sample: bool = False
    """Whether the labels of a sample share one weight of 1, instead of having each their own."""

    @property
    def weighted(self) -> bool:
        """Whether labels do not all count 1."""
        return self.by_sample or self.samples.weights is not None

    @property
    def unit_lengths(self) -> npt.NDArray[np.int32]:
        return self.samples.lengths

    def batch(self, numbers: Sequence[int]) -> Batch:
        return make_batch(
            [self.row(number) for number in numbers],
            self.sequence_length,
            self.pad_id,
            source_ids=np.array([self.source_of(self.units(one)) for one in numbers], np.int64),
            weighted=self.weighted,
        )

    def row(self, number: int) -> list[Sample]:
        """The samples of a row."""
        return [self._sample(place) for place in self.units(number).tolist()]

    def _sample(self, place: int) -> Sample:
        sample = self.samples.sample(place)
        if not self.by_sample:
            return sample
        return Sample(sample.tokens, sample.labels, sample.weights / sample.weights.sum())
