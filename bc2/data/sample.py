"""A weighted sample of a corpus's training text, spread over all of it: for tokenizers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.corpus import corpus_parts, read_corpus, source_parts
from bc2.errors import DataError, RecipeError, nearest

#: Documents are ranked by this many bits of a hash; a threshold is found in a histogram.
_RANK_BITS = 20


class SourceShare(NamedTuple):
    """How a source is taken: every document `copies` times, and those ranked below once more."""

    copies: int
    below: int


def sample_texts(
    corpus: Path, budget_bytes: int, weights: Mapping[str, float], seed: int
) -> Iterator[str]:
    """Texts of the training split, at most `budget_bytes` of UTF-8 altogether.

    A source's share is in proportion to its natural size times its weight (1 unless given).
    If all of that fits the budget, each document comes `weight` times; otherwise sources are
    thinned alike. Which documents is decided by the hash of (seed, id), so the sample is
    spread over the whole corpus and the same in every run. Two passes over the corpus (the
    first counts), constant memory. Order: as the corpus.

    Raises:
        RecipeError: a weight for an unknown source, negative, or none above zero.
        DataError: no corpus, or the budget is less than one document.
    """
    sizes: dict[str, int] = {}
    for source, part in source_parts(corpus, "train"):
        sizes[source] = sizes.get(source, 0) + part.bytes
    targets = _targets(sizes, budget_bytes, weights)
    shares = {
        name: _share(corpus, name, sizes[name], target, seed) for name, target in targets.items()
    }
    if not any(share.copies or share.below for share in shares.values()):
        raise DataError(
            f"a sample of {budget_bytes:,} bytes holds not one document",
            where=str(corpus),
            todo="raise the sample's size",
        )
    return _take(corpus, shares, seed)


def _targets(sizes: Mapping[str, int], budget: int, weights: Mapping[str, float]) -> dict[str, int]:
    """UTF-8 bytes to take from each source."""
    for name, weight in weights.items():
        if name not in sizes:
            guess = nearest(name, sizes)
            raise RecipeError(
                f"a weight for a source that the corpus has not got: {name!r}",
                todo=f"did you mean {guess!r}?" if guess else f"it has {', '.join(sizes)}",
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise RecipeError(f"the weight of source {name!r} is {weight}", todo="give 0 or more")
    wanted = {name: size * weights.get(name, 1.0) for name, size in sizes.items()}
    total = sum(wanted.values())
    if total <= 0:
        raise RecipeError("every source has weight 0", todo="give one source a weight above 0")
    scale = min(1.0, budget / total)
    return {name: math.floor(scale * size) for name, size in wanted.items() if size > 0}


def _share(corpus: Path, source: str, size: int, target: int, seed: int) -> SourceShare:
    """The share of a source that comes nearest to `target` bytes without exceeding it."""
    copies, rest = divmod(target, size)
    if rest == 0:
        return SourceShare(copies, 0)
    by_rank = np.zeros(1 << _RANK_BITS, dtype=np.int64)
    for part in corpus_parts(corpus, "train", source):
        with pq.ParquetFile(corpus / part.file, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=["id", "text"])
                ranks = [sample_rank(seed, name) for name in rows["id"].to_pylist()]
                np.add.at(by_rank, ranks, pc.binary_length(rows["text"]).to_numpy())
    taken = np.cumsum(by_rank)
    below = int(np.searchsorted(taken, rest, side="right"))
    return SourceShare(copies, below if below and taken[below - 1] else 0)


def _take(corpus: Path, shares: Mapping[str, SourceShare], seed: int) -> Iterator[str]:
    for name, share in shares.items():
        for document in read_corpus(corpus, "train", name):
            count = share.copies + (sample_rank(seed, document.id) < share.below)
            for _ in range(count):
                yield document.text


def sample_rank(seed: int, document_id: str) -> int:
    """A document's place in the order of sampling: 20 bits of the hash of (seed, id)."""
    digest = hashlib.blake2b(f"{seed}:{document_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _RANK_BITS)
