"""Which rows lm-eval read itself."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bc2.harness.load import LoadedSuite


def rows_digest(loaded: LoadedSuite) -> str:
    """Hex SHA-256 of the rows that are scored and of those that shots are taken from."""
    digest = hashlib.sha256()
    for name, task in loaded.tasks.items():
        shots = task.fewshot_docs() if task.config.num_fewshot else None
        for docs in (task.eval_docs, shots or ()):
            digest.update(f"{name}\0{len(docs)}\0".encode())
            for doc in docs:
                digest.update(json.dumps(doc, sort_keys=True, default=str).encode())
    return digest.hexdigest()
