"""Embeddings of documents as integers: from a sentence-transformers model, or from words alone.

They are integers so that no decision depends on the last bits of a sum: sums of integers are exact
in any order, and so in any batch and thread.

Shapes:
    N  texts      D  dimensions
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bc2.data.mixture import mix
from bc2.data.prep.text import minhash
from bc2.errors import DataError, UsageError
from bc2.files import sha256_file
from bc2.streams import first_line
from bc2.user_paths import expand_if_known

Int64 = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]

#: A component of a unit vector is rounded to a multiple of 1 / this.
_SCALE = 1 << 12

#: The largest component of a vector of 8 bits.
_LARGEST = 127


# -- from a model --------------------------------------------------------------------------


def check_model(name: str | None, where: str) -> None:
    """Check that a model can be loaded, as far as possible without loading it.

    Args:
        name: of the model on the hub, or its folder; None for no model, which is valid.
        where: the key of the recipe that names it, for errors.

    Raises:
        UsageError: sentence-transformers is not installed.
        DataError: `name` is a path, and there is no such folder.
    """
    if name is None:
        return
    if find_spec("sentence_transformers") is None:
        raise UsageError(
            f"{where} needs sentence-transformers, which is not installed",
            todo="pip install sentence-transformers, or remove the key to use words, not a model",
        )
    if name.startswith((".", "/", "~")) and not expand_if_known(name).is_dir():
        raise DataError("there is no such model", where=name, todo=f"check {where}")


def model_digests(name: str | None) -> dict[str, str]:
    """Hex SHA-256 of each file of a model's folder, by relative path; {} for a model on the hub."""
    if name is None:
        return {}
    root = expand_if_known(name)
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in files}


def embed(name: str, texts: Sequence[str]) -> Int64:
    """The embeddings of texts as unit vectors, rounded to multiples of 2**-12: [N, D].

    They are computed for one text at a time on one thread: in a batch, padding and the order of
    sums would make the last bits of a text's vector depend on its neighbours.

    Returns:
        The vectors times 2**12.

    Raises:
        UsageError, DataError: the model cannot be loaded.
    """
    import torch

    model = _model(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            model.encode(text, normalize_embeddings=True, show_progress_bar=False) for text in texts
        ]
    finally:
        torch.set_num_threads(threads)
    vectors = np.array(rows, np.float64).reshape(len(texts), _width(model))
    return np.rint(vectors * _SCALE).astype(np.int64)


def embed_spans(name: str, texts: Sequence[str], span: int) -> Int64:
    """For each text, the sum of the vectors of its spans, weighted by their characters: [N, D].

    Args:
        span: characters of a span.
    """
    cuts = [range(0, max(len(text), 1), span) for text in texts]
    spans = [
        [text[cut : cut + span] for cut in mine] for text, mine in zip(texts, cuts, strict=True)
    ]
    flat = list(chain.from_iterable(spans))
    vectors = embed(name, flat) * np.array([*map(len, flat)], np.int64)[:, None]
    starts = np.cumsum([0, *map(len, spans)])[:-1]
    return np.add.reduceat(vectors, starts) if texts else vectors


def _width(model: Any) -> int:
    """The number of dimensions; version 6 of the library renamed the method that returns it."""
    ask = getattr(model, "get_embedding_dimension", None)
    return int((ask or model.get_sentence_embedding_dimension)())


@lru_cache(maxsize=1)
def _model(name: str) -> Any:
    """Load a model, once in each process.

    Raises:
        UsageError: sentence-transformers is not installed.
        DataError: the folder, or the hub under this name, has no model that can be loaded.
    """
    check_model(name, "an embedding's model")
    from sentence_transformers import SentenceTransformer

    path = expand_if_known(name)
    try:
        return SentenceTransformer(str(path) if path.is_dir() else name, device="cpu")
    except Exception as error:  # the library, the hub and their HTTP library: no common class
        raise DataError(
            f"cannot load the embedding's model: {first_line(error)}",
            where=name,
            todo="check its name and the network, or give the folder of a model",
        ) from error


# -- from words alone ----------------------------------------------------------------------


def project(words: pa.Array, dimensions: int, seed: int) -> Int64:
    """A random projection of the set of words and pairs of consecutive words of each text: [N, D].

    Each distinct word or pair adds 1 or -1 in one dimension; its hash decides both (Weinberger
    et al. 2009, "Feature hashing for large scale multitask learning"). The expected inner product
    of two vectors is the size of the sets' intersection. So their cosine estimates
    shared / sqrt(size of one x size of the other), with a standard deviation of about
    (1 - cosine^2) / sqrt(D). There are more pairs than words, so long texts of the same common
    words are not similar. How often a word occurs in a text does not count.

    Args:
        words: [N], from `words_of`.
        dimensions: D.
    """
    found = np.zeros(len(words) * dimensions, np.int64)
    for length in (1, 2):
        values, ends = minhash.shingle_sets(words, length)
        hashed = mix(values ^ mix(np.uint64(seed)))
        rows = np.repeat(np.arange(len(words)), np.diff(ends))
        places = rows * dimensions + (hashed % np.uint64(dimensions)).astype(np.int64)
        signs = np.where(hashed >> np.uint64(63), 1.0, -1.0)
        found += np.bincount(places, signs, len(found)).astype(np.int64)
    return found.reshape(len(words), dimensions)


# -- stored --------------------------------------------------------------------------------


def quantise(vectors: Int64) -> Int8:
    """Scale each vector [N, D] so that its largest component is 127, and round it to 8 bits.

    Rounding turns a vector of 256 dimensions by about 0.01 rad, which changes cosines by about
    0.0001.
    """
    largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True)
    rounded: Int8 = np.rint(vectors * (_LARGEST / np.maximum(largest, 1))).astype(np.int8)
    return rounded
