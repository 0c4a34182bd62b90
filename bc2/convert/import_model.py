"""A model of another library's layout becomes artifacts of the registry."""

from __future__ import annotations

from pathlib import Path

from bc2.registry import Artifact, Registry, Role


def import_model(
    registry: Registry,
    source: str | Path,
    *,
    name: str | None = None,
    role: Role | None = None,
    chat_layout: str | None = None,
) -> Artifact:
    """The checkpoint that a model becomes, imported now or found."""
    raise NotImplementedError
