"""What may be registered: kinds, names, roles, positions, stage keys; and drafts of artifacts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from bc2.errors import UsageError, nearest
from bc2.files import LONGEST_NAME, canonical_json, sha256_json

Kind = Literal[
    "corpus",
    "tokenizer",
    "tokens",
    "chats",
    "pairs",
    "checkpoint",
    "logprobs",
    "law",
    "scores",
    "certificate",
    "export",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: What a checkpoint is for, so that each verb takes those that it can use.
Role = Literal["base", "chat", "adapter", "reward", "merged"]
ROLES: tuple[Role, ...] = get_args(Role)

#: How much of a digest names a directory and is printed as a ref: 16 hex digits, 64 bits.
SHORT = 16

#: The manifest's file. Here, since reading one takes imports that a listing does without.
MANIFEST = "manifest.json"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEX = re.compile(r"[0-9a-f]+")


def check_name(name: str, what: str = "name") -> str:
    """`name` itself, if it may name an artifact or a tag.

    Raises:
        UsageError: it may not. A name of 16 or more hex digits would hide a digest.
    """
    if len(name) > LONGEST_NAME:
        raise UsageError(
            f"the {what} {name[:20]}… has {len(name):,} characters",
            todo=f"use at most {LONGEST_NAME}",
        )
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the {what} of an artifact",
            todo="use letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )
    if len(name) >= SHORT and _HEX.fullmatch(name):
        raise UsageError(f"the {what} {name!r} looks like a digest", todo="choose another one")
    return name


def check_kind(kind: str) -> Kind:
    """`kind` as a Kind. Raises: UsageError if there is no such kind."""
    for known in KINDS:
        if kind == known:
            return known
    guess = nearest(kind, KINDS)
    todo = f"did you mean {guess!r}?" if guess else f"kinds: {', '.join(KINDS)}"
    raise UsageError(f"no such kind of artifact: {kind!r}", todo=todo)


def check_role(role: str) -> Role:
    """`role` as a Role. Raises: UsageError if there is no such role."""
    for known in ROLES:
        if role == known:
            return known
    guess = nearest(role, ROLES)
    todo = f"did you mean {guess!r}?" if guess else f"roles: {', '.join(ROLES)}"
    raise UsageError(f"no such role of a checkpoint: {role!r}", todo=todo)


def role_of(kind: Kind, recorded: Role | None) -> Role | None:
    """The role of an artifact of which `recorded` is recorded.

    A checkpoint without one is from before there were roles: a base model. Nothing else has one.
    """
    return (recorded or "base") if kind == "checkpoint" else None


def spell_roles(roles: Collection[Role]) -> str:
    """``base, chat or merged``, for messages."""
    *most, last = [role for role in ROLES if role in roles]
    return f"{', '.join(most)} or {last}" if most else last


def stage_key(kind: Kind, version: int, settings: Mapping[str, Any], parents: Sequence[str]) -> str:
    """What makes two runs of a stage the same: hex SHA-256 of everything that affects results.

    Args:
        kind: what the stage makes.
        version: the stage's own version, raised when its results change.
        settings: JSON data, as from `bc2.recipe.Settings.keyed`.
        parents: the full digests of the stage's inputs, in their order.
    """
    return sha256_json(
        {"kind": kind, "version": version, "settings": settings, "parents": list(parents)}
    )


@dataclass(frozen=True)
class Position:
    """Where in a run a checkpoint was taken: optimizer steps done, tokens seen."""

    step: int
    tokens: int


@dataclass(frozen=True)
class Draft:
    """An artifact about to be made.

    Raises:
        UsageError: a name, key, parent, position, role or recorded value that cannot be.
    """

    kind: Kind
    name: str
    key: str
    """The stage key, 64 hex digits; see `stage_key`."""
    parents: tuple[str, ...] = ()
    """Full digests of the artifacts this one is made from, in order."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe: recorded, not identity."""
    position: Position | None = None
    finished: bool = True
    """False for a checkpoint of a run that is still going."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Counts, licences, sources, metrics: recorded, not identity."""
    role: Role | None = None
    """What a checkpoint is for: recorded, not identity. None: a base model, if a checkpoint."""

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if self.role is not None:
            check_role(self.role)
            if self.kind != "checkpoint":
                what = f"{self.kind}/{self.name} cannot have the role {self.role!r}"
                raise UsageError(what, todo="only a checkpoint has a role")
        check_name(self.name)
        for what, digest in (("key", self.key), *(("parent", parent) for parent in self.parents)):
            if len(digest) != 64 or not _HEX.fullmatch(digest):
                raise UsageError(f"the {what} of {self.name} is no SHA-256: {digest!r}")
        if self.position and min(self.position.step, self.position.tokens) < 0:
            raise UsageError(f"{self.name} has a negative position: {self.position}")
        check_json(self.recipe, f"the recipe of {self.name}")
        check_json(self.facts, f"the facts of {self.name}")


def check_json(value: Mapping[str, Any], what: str) -> None:
    """Raises: UsageError if `value` cannot be written as JSON and read back the same."""
    try:
        canonical_json(value).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} cannot be recorded as JSON: {error}") from None


def place_of(kind: Kind, name: str, digest: str) -> Path:
    """Where an artifact lives below ``home/artifacts``: ``KIND/NAME/DIGEST16``."""
    return Path(kind, name, digest[:SHORT])
