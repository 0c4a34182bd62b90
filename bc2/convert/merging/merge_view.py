"""What a merge went by, as a table for people."""

from __future__ import annotations

from typing import Any

from bc2.console import table
from bc2.registry import Artifact


def tensor_table(merged: Artifact) -> Any:
    """Cosine of each tensor, and Model Stock's factor; None where the method has neither."""
    tensors: dict[str, dict[str, float]] = merged.manifest.facts.get("tensors", {})
    if not tensors:
        return None
    columns = [*next(iter(tensors.values()))]
    rows = [[name, *(f"{found[what]:.4f}" for what in columns)] for name, found in tensors.items()]
    return table(["tensor", *columns], rows)
