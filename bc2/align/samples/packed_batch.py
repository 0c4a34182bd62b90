"""A micro-batch of packed rows. Shapes: R rows of S tokens, N samples in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bc2.align.samples.sample import Sample
from bc2.data.loader import IGNORED, SAMPLE, Batch

#: The token field with how much each label counts, where they do not all count 1; and the weight
#: of a batch that is the sum of them.
WEIGHT = "weight"


def make_batch(
    rows: Sequence[Sequence[Sample]],
    sequence_length: int,
    pad_id: int,
    *,
    source_ids: npt.NDArray[np.int64] | None = None,
    weighted: bool = False,
) -> Batch:
    """A micro-batch of packed rows; what is left of a row is padding, which attends to itself.

    Args:
        rows: the samples of each, together at most `sequence_length` tokens.
        source_ids: [R]; 0 if None.
        weighted: whether labels have weights of their own, as all batches of a run have or none.
    """
    shape = (len(rows), sequence_length)
    tokens = np.full(shape, pad_id, np.int64)
    labels, samples = np.full(shape, IGNORED, np.int64), np.full(shape, IGNORED, np.int64)
    weights = np.zeros(shape, np.float32)
    begins, number = [], 0
    for row, packed in enumerate(rows):
        at = 0
        for sample in packed:
            end = at + len(sample.tokens)
            tokens[row, at:end], labels[row, at:end] = sample.tokens, sample.labels
            weights[row, at:end], samples[row, at:end] = sample.weights, number
            begins.append(row * sequence_length + at)
            at, number = end, number + 1
        if at < sequence_length:
            begins.append(row * sequence_length + at)
    cu_seqlens = np.array([*begins, tokens.size], np.int32)
    return Batch(
        tokens=tokens,
        labels=labels,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(np.diff(cu_seqlens).max()),
        num_labels=int(np.count_nonzero(labels != IGNORED)),
        source_ids=np.zeros(len(rows), np.int64) if source_ids is None else source_ids,
        token_fields={SAMPLE: samples, **({WEIGHT: weights} if weighted else {})},
        packed_samples=number,
        extra_weights={WEIGHT: float(weights.sum(dtype=np.float64))},
    )
