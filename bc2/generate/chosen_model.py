"""The checkpoint that a command works with: the one that is named, or the newest."""

from __future__ import annotations

from bc2.console import note
from bc2.registry import Artifact, Registry, Role

#: Roles of the checkpoints that predict a next token by themselves.
ROLES: tuple[Role, ...] = ("base", "chat", "merged")


def chosen_model(registry: Registry, ref: str | None) -> Artifact:
    """The model of a ref; the newest one without, which is said.

    Raises:
        RefError: there is none, or it is no model that predicts a next token.
    """
    if ref is not None:
        return registry.resolve(ref, "checkpoint", ROLES)
    newest = registry.newest("checkpoint", ROLES)
    note(f"taking the newest model, {newest.title} ({newest.ref})")
    return newest
