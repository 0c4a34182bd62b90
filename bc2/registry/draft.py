"""What is registered: kinds, positions, drafts before publishing, artifacts after it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bc2.errors import IntegrityError, RefError, UsageError, nearest
from bc2.files import canonical_json, lock_directory, sha256_json

if TYPE_CHECKING:
    from bc2.registry.manifest import Manifest

Kind = Literal["corpus", "tokenizer", "tokens", "checkpoint", "law", "scores", "export"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: How much of a digest names a directory and is printed as a ref: 16 hex digits, 64 bits.
SHORT = 16

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEX = re.compile(r"[0-9a-f]+")
#: A directory name may hold 255 bytes, and temporary names beside it are a little longer.
_LONGEST_NAME = 200


def check_name(name: str, what: str = "name") -> str:
    """`name` itself, if it may name an artifact or a tag.

    Raises:
        UsageError: it may not. A name of 16 or more hex digits would hide a digest.
    """
    if not NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
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
        UsageError: a name, key, parent, position or recorded value that cannot be.
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

    def __post_init__(self) -> None:
        check_kind(self.kind)
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


@dataclass(frozen=True)
class Artifact:
    """A published artifact: what the index knows of it, and the way to its files."""

    digest: str
    """64 hex digits: SHA-256 of kind, name, key, position, finished, parents and files."""
    kind: Kind
    name: str
    key: str
    position: Position | None
    parents: tuple[str, ...]
    finished: bool
    created: str
    """When it was published: ISO 8601, UTC, microseconds; sorts as text."""
    tags: tuple[str, ...]
    """Its tags when it was looked up."""
    path: Path

    @property
    def ref(self) -> str:
        """16 hex digits that always resolve to this artifact."""
        return self.digest[:SHORT]

    @property
    def title(self) -> str:
        """``kind/NAME`` or ``kind/NAME@step``, for people."""
        return f"{self.kind}/{self.name}" + (f"@{self.position.step}" if self.position else "")

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, checked against its seal and this digest.

        Raises:
            IntegrityError: it is missing, broken, or another artifact's.
        """
        from bc2.registry.manifest import read

        manifest = read(self.path)
        if manifest.digest != self.digest:
            raise IntegrityError(
                f"{self.title} is not the artifact {self.ref}, but {manifest.digest[:SHORT]}",
                where=str(self.path),
            )
        return manifest

    def files(self, prefix: str = "") -> list[str]:
        """Paths of the payload's files below the artifact, sorted, that begin with `prefix`."""
        return [entry.path for entry in self.manifest.files if entry.path.startswith(prefix)]

    def file(self, relpath: str) -> Path:
        """The path of one file, after reading it through and finding it intact.

        Raises:
            IntegrityError: its size or SHA-256 is not the manifest's; names the file.
            RefError: the artifact has no such file.
        """
        from bc2.registry.payload import check_file

        for entry in self.manifest.files:
            if entry.path == relpath:
                return check_file(self.path, entry)
        guess = nearest(relpath, self.files())
        raise RefError(
            f"{self.title} has no file {relpath!r}",
            where=str(self.path),
            todo=f"did you mean {guess!r}?" if guess else None,
        )

    @contextmanager
    def hold(self) -> Iterator[Artifact]:
        """Keep the artifact from being removed while the context is open.

        Raises:
            IntegrityError: it is gone already.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_directory(self.path, shared=True, wait=True))
            except FileNotFoundError:
                raise IntegrityError(
                    f"the files of {self.title} are gone", where=str(self.path)
                ) from None
            yield self
