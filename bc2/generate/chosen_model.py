"""The checkpoint that a command works with: the one that is named, or the newest."""

from __future__ import annotations

from bc2.console import note
from bc2.errors import RefError
from bc2.model.saved_adapter import base_of, holds_adapters
from bc2.registry import Artifact, Registry, Role

#: Roles of the checkpoints that predict a next token: an adapter beside its base.
ROLES: tuple[Role, ...] = ("base", "chat", "adapter", "merged")


def chosen_model(registry: Registry, ref: str | None) -> Artifact:
    """The model of a ref; the newest one without, which is said.

    Raises:
        RefError: there is none, or it is no model that predicts a next token; or the base of an
            adapter is not registered.
        DataError: it has adapters of a kind that bc2 does not load.
        IntegrityError: its configuration is not what was published.
    """
    if ref is not None:
        chosen = registry.resolve(ref, "checkpoint", ROLES)
    else:
        chosen = registry.newest("checkpoint", ROLES)
        note(f"taking the newest model, {chosen.title} ({chosen.ref})")
    _check_head(chosen)
    if holds_adapters(chosen):
        base_of(chosen, registry)
    return chosen


def _check_head(artifact: Artifact) -> None:
    """A checkpoint's role says what it was trained for, and not which head it has."""
    from bc2.model.store import CONFIG, load_config

    if CONFIG not in artifact.files():
        return  # refused when it is opened, with all that it lacks
    artifact.file(CONFIG)
    head = load_config(artifact.path).head
    if head != "language":
        raise RefError(
            f"{artifact.title} has a {head} head, and only a language head says a next token",
            where=artifact.ref,
            todo="name a model with a language head: bc2 registry list --kind checkpoint",
        )
