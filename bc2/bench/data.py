"""Random token shards of the real format, so that a benchmark reads as training does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bc2.data.loader import Loader
from bc2.data.mixture import Mixture
from bc2.data.shards import INDEX, TokenShards, token_dtype
from bc2.parallel.mesh import Mesh
from bc2.train.pretrain.token_stream import TokenStream
from bc2.train.run_config import RunConfig
from bc2.train.stream import StepData

#: The name of the only source.
SOURCE = "random"

#: The id after a document; random tokens are above it.
EOS = 0

#: Tokens that are written at least, so that sequences repeat late.
MIN_TOKENS = 1 << 20


def write_shards(folder: Path, vocab_size: int, training: RunConfig, documents: int) -> None:
    """Write uniformly random tokens.

    Args:
        folder: an empty directory.
        documents: mean tokens of a document; lengths are geometric. 0: no document ends, so
            that every sequence is one document of full length.
    """
    count = max(MIN_TOKENS, 4 * training.step_tokens) + 1
    random = np.random.default_rng(training.seed)
    tokens = random.integers(EOS + 1, vocab_size, count).astype(token_dtype(vocab_size))
    if documents:
        tokens[random.random(count) < 1 / documents] = EOS
    path = folder / "train" / SOURCE / "shard-00000.bin"
    path.parent.mkdir(parents=True)
    tokens.tofile(path)
    ends = max(1, int(np.count_nonzero(tokens == EOS)))
    counts = {"tokens": count, "documents": ends, "bytes": 0}
    shard = {"file": str(path.relative_to(folder)), **counts}
    facts = {
        "dtype": tokens.dtype.str,
        "vocab_size": vocab_size,
        "eos_id": EOS,
        "tokenizer": "",
        "splits": {"train": {SOURCE: {**counts, "shards": [shard]}}, "heldout": {}},
    }
    (folder / INDEX).write_text(json.dumps(facts), encoding="utf-8")


def stream(folder: Path, training: RunConfig, mesh: Mesh | None = None) -> TokenStream:
    """The stream that training itself uses: the steps of this rank of `mesh`."""
    data = (mesh or Mesh()).data
    return TokenStream(
        _loader(folder, training),
        training.batch_sequences,
        training.micro_sequences,
        timeout_s=training.data_timeout_s,
        check=_nothing,
        rank=data.rank,
        ranks=data.size,
    )


@contextmanager
def read_steps(
    folder: Path, training: RunConfig, mesh: Mesh | None = None
) -> Iterator[Iterator[StepData]]:
    """The steps of training on the shards, without end, read ahead on a thread."""
    with stream(folder, training, mesh).steps(0) as steps:
        yield steps


def _loader(folder: Path, training: RunConfig) -> Loader:
    shards = TokenShards.open(folder)
    length = training.sequence_length
    windows = {SOURCE: (shards.num_tokens("train", SOURCE) - 1) // length}
    return Loader(shards, "train", Mixture(windows, None, training.seed), length, EOS)


def _nothing() -> None:
    """A benchmark is stopped from outside: there is no signal to look for while waiting."""
