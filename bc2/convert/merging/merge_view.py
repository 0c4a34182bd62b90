"""What a merge was made of and went by, as tables for people."""

from __future__ import annotations

from typing import Any

from bc2.console import table
from bc2.registry import Artifact


def merge_tables(merged: Artifact) -> Any:
    """What part each model has; and of each tensor its cosine, and Model Stock's factor.

    Returns:
        Something to draw; None for an adapter and its base.
    """
    from rich.console import Group

    parents: list[dict[str, str]] = merged.manifest.facts.get("merged_from", [])
    if not parents:
        return None
    rows = [[one["digest"][:16], one["title"], one["as"]] for one in parents]
    drawn = [table(["merged from", "", ""], rows)]
    tensors: dict[str, dict[str, float]] = merged.manifest.facts.get("tensors", {})
    if tensors:
        columns = [*next(iter(tensors.values()))]
        told = [[name, *(f"{found[what]:.4f}" for what in columns)]
                for name, found in tensors.items()]  # fmt: skip
        drawn += ["", table(["tensor", *columns], told)]
    return Group(*drawn)
