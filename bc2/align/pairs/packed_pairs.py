"""Pairs packed into rows: both answers of a pair lie in one row, so in one pass of the model.

Shapes: R rows of S tokens, P pairs in them, N = 2 P samples: 2 k is the chosen answer of pair k,
2 k + 1 the rejected one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.align.pairs.pair_samples import PairSamples, with_end
from bc2.align.pairs.preference_config import PAIRS
from bc2.align.samples.packed_batch import make_batch
from bc2.align.samples.packed_rows import PackedRows
from bc2.align.samples.sample import Sample
from bc2.data.loader import Batch


@dataclass(frozen=True)
class PackedPairs(PackedRows):
    """All rows of a run, by their number."""

    pairs: PairSamples
    ends: bool
    """Whether samples have the last token of their answers, at which alone they have a label: what
    a reward model reads. Else their labels are those of the answers."""
    fields: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """By name [U, 2], what is said of the chosen and the rejected answer of each pair: the
    `Batch.sample_fields`."""

    @property
    def unit_lengths(self) -> npt.NDArray[np.int32]:
        return (self.pairs.lengths + 2 * self.ends).astype(np.int32)

    def batch(self, numbers: Sequence[int]) -> Batch:
        return self.batch_of([self.units(number) for number in numbers])

    def batch_of(self, rows: Sequence[npt.NDArray[np.int64]]) -> Batch:
        """A micro-batch of the pairs of each row, together at most `sequence_length` tokens."""
        batch = make_batch(
            [[*self._samples(units)] for units in rows],
            self.sequence_length,
            self.pad_id,
            source_ids=np.array([self.source_of(units) for units in rows], np.int64),
        )
        units = np.concatenate([*rows, self.entries[:0]])
        said = {name: values[units].reshape(-1) for name, values in self.fields.items()}
        weights = {**batch.extra_weights, PAIRS: float(len(units))}
        return replace(batch, sample_fields=said, extra_weights=weights)

    def _samples(self, units: npt.NDArray[np.int64]) -> list[Sample]:
        places = self.pairs.places[units].reshape(-1).tolist()
        samples = [self.pairs.samples.sample(at) for at in places]
        return [with_end(sample) for sample in samples] if self.ends else samples
