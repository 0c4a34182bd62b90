"""The checkpoint that a command works with: the one that is named, or the newest."""

from __future__ import annotations

from bc2.console import note
from bc2.errors import RefError
from bc2.model.saved_adapter import base_of, holds_adapters
from bc2.registry import Artifact, Registry, Role

#: Roles of the checkpoints that predict a next token: an adapter beside its base.
ROLES: tuple[Role, ...] = ("base", "chat", "adapter", "merged")

#: Roles of the checkpoints that score answers.
REWARD_ROLES: tuple[Role, ...] = ("reward", "adapter")


def chosen_model(registry: Registry, ref: str | None) -> Artifact:
    """The model of a ref; the newest one without, which is said.

    The newest is the newest of those that predict a next token: reward models are passed over.

    Raises:
        RefError: there is none, or it is no model that predicts a next token; or the base of an
            adapter is not registered.
        DataError: it has adapters of a kind that bc2 does not load.
        IntegrityError: its configuration is not what was published.
    """
    if ref is not None:
        chosen = registry.resolve(ref, "checkpoint", ROLES)
    else:
        chosen = _newest(registry)
        note(f"taking the newest model, {chosen.title} ({chosen.ref})")
    _check_speaks(chosen)
    return _with_base(chosen, registry)


def chosen_reward_model(registry: Registry, ref: str) -> Artifact:
    """The reward model of a ref, all of it or an adapter.

    Raises:
        RefError: there is none, or it is one that scores no answers; or the base of an adapter is
            not registered.
        DataError, IntegrityError: see `chosen_model`.
    """
    chosen = registry.resolve(ref, "checkpoint", REWARD_ROLES)
    head = head_of(chosen)
    if head not in ("scalar", None):
        raise RefError(
            f"{chosen.title} has a {head} head, and only a reward model scores answers",
            where=chosen.ref,
            todo="name a reward model (`bc2 reward` trains one): "
            "bc2 registry list --kind checkpoint --role reward",
        )
    return _with_base(chosen, registry)


def chosen_to_serve(registry: Registry, ref: str | None) -> Artifact:
    """The model of a ref, which speaks or scores answers; without one see `chosen_model`.

    Raises:
        RefError, DataError, IntegrityError: see `chosen_model`.
    """
    if ref is None:
        return chosen_model(registry, None)
    chosen = registry.resolve(ref, "checkpoint")
    if head_of(chosen) != "scalar":
        return chosen_model(registry, ref)
    return _with_base(chosen, registry)


def head_of(artifact: Artifact) -> str | None:
    """The head of a checkpoint, whatever its role; None: it says none, and cannot be opened.

    Raises:
        IntegrityError: its configuration is not what was published.
    """
    from bc2.model.store import CONFIG, load_config

    if CONFIG not in artifact.files():
        return None  # refused when it is opened, with all that it lacks
    artifact.file(CONFIG)
    return load_config(artifact.path).head


def _newest(registry: Registry) -> Artifact:
    newest = registry.newest("checkpoint", ROLES)
    if head_of(newest) in ("language", None):
        return newest
    older = registry.list("checkpoint", finished=True, roles=ROLES)[1:]
    return next((one for one in older if head_of(one) == "language"), newest)


def _check_speaks(artifact: Artifact) -> None:
    """A checkpoint's role says what it was trained for, and not which head it has."""
    head = head_of(artifact)
    if head not in ("language", None):
        does = "; it scores answers: bc2 score-reward" if head == "scalar" else ""
        raise RefError(
            f"{artifact.title} has a {head} head, and only a language head says a next token",
            where=artifact.ref,
            todo=f"name a model with a language head: bc2 registry list --kind checkpoint{does}",
        )


def _with_base(chosen: Artifact, registry: Registry) -> Artifact:
    """The model itself, whose base is registered if it is an adapter."""
    if holds_adapters(chosen):
        base_of(chosen, registry)
    return chosen
