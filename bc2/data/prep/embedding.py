"""Embeddings of documents by a sentence-transformers model, as integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.errors import DataError, UsageError
from bc2.files import sha256_file

#: A component of a unit vector is rounded to a multiple of 1 / this.
_SCALE = 1 << 12


def check_model(name: str) -> None:
    """See that the library is installed, and a folder there where a path is named.

    Raises:
        UsageError: sentence-transformers is not installed.
        DataError: there is no such folder.
    """
    if find_spec("sentence_transformers") is None:
        raise UsageError(
            "corpus.clusters.model needs sentence-transformers, which is not installed",
            todo="pip install sentence-transformers, or leave the key out: words need no model",
        )
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise DataError("there is no such model", where=name, todo="check corpus.clusters.model")


def model_digests(name: str) -> dict[str, str]:
    """SHA-256 of each file of a model in a folder, by its name in it; {} of a name on the hub."""
    root = Path(name).expanduser()
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in files}


def embed(name: str, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """[N, dimensions] unit vectors, rounded to integers.

    One text at a time on one thread: in a batch, padding and the order of sums would let a
    text's neighbours show in its last bits.
    """
    import torch

    model = _model(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [model.encode(text, normalize_embeddings=True) for text in texts]
    finally:
        torch.set_num_threads(threads)
    width = model.get_sentence_embedding_dimension()
    vectors = np.array(rows, np.float64).reshape(len(texts), width)
    return np.rint(vectors * _SCALE).astype(np.int64)


@lru_cache(maxsize=1)
def _model(name: str) -> Any:
    check_model(name)
    from sentence_transformers import SentenceTransformer

    path = Path(name).expanduser()
    return SentenceTransformer(str(path) if path.is_dir() else name, device="cpu")
