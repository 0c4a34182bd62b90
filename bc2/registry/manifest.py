"""The manifest: one JSON file an artifact, from which everything else can be rebuilt.

Identity (kind, name, key, position, finished, parents, files) gives the digest.
The rest is recorded. The seal covers all of it, and the file must be spelled
exactly as `render` spells it, so that no flipped byte goes unseen.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from bc2.errors import IntegrityError, RunFailed, UsageError, from_os_error
from bc2.files import canonical_json, sha256_json
from bc2.registry.draft import MANIFEST, Draft, Kind, Position, Role, check_name
from bc2.registry.environment import code, environment

FILENAME = MANIFEST
#: The newest format. 1 knows neither roles nor certificates: what has none of them is written
#: so, and a bc2 that knows format 1 alone can read it.
FORMAT = 2

_IDENTITY = ("kind", "name", "key", "position", "finished", "parents", "files")


def _inside(path: str) -> str:
    """A manifest from elsewhere must not name files outside its artifact."""
    if path != str(PurePosixPath(path)) or path[:1] == "/" or ".." in path.split("/"):
        raise ValueError(f"not a path inside an artifact: {path!r}")
    return path


def _usable(name: str) -> str:
    try:
        return check_name(name)
    except UsageError as error:
        raise ValueError(str(error)) from None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Record):
    """One file of the payload."""

    path: Annotated[str, AfterValidator(_inside)]
    """Relative to the artifact, with ``/``."""
    size: int
    """Bytes."""
    sha256: str
    """Hex SHA-256 of its bytes."""


class Manifest(_Record):
    """What an artifact is (its identity) and how it was made (recorded)."""

    format: Literal[1, 2]
    digest: str
    """Hex SHA-256 of the canonical JSON of the identity."""
    kind: Kind
    name: Annotated[str, AfterValidator(_usable)]
    key: str
    position: Position | None
    finished: bool
    parents: tuple[str, ...]
    files: tuple[FileEntry, ...]
    created: str
    recipe: dict[str, Any]
    facts: dict[str, Any]
    code: dict[str, Any]
    environment: dict[str, Any]
    seal: str
    """Hex SHA-256 of the canonical JSON of everything else here."""
    role: Role | None = None
    """What a checkpoint is for, where it is recorded: see `bc2.registry.draft.role_of`."""

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return sum(entry.size for entry in self.files)

    @model_validator(mode="after")
    def _role_of_a_checkpoint(self) -> Self:
        if self.role is not None and self.kind != "checkpoint":
            raise ValueError("only a checkpoint has a role")
        return self


def build(draft: Draft, files: Sequence[FileEntry], facts: Mapping[str, Any]) -> Manifest:
    """The sealed manifest of a draft whose payload is `files`."""
    data: dict[str, Any] = {
        "format": 2 if draft.role or draft.kind == "certificate" else 1,
        "kind": draft.kind,
        "name": draft.name,
        "key": draft.key,
        "position": vars(draft.position) if draft.position else None,
        "finished": draft.finished,
        "parents": list(draft.parents),
        "files": [entry.model_dump() for entry in files],
        "created": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "recipe": draft.recipe,
        "facts": {**draft.facts, **facts},
        "code": code(),
        "environment": environment(),
    }
    if draft.role:
        data["role"] = draft.role
    data["digest"] = digest_of(data)
    data["seal"] = seal_of(data)
    return Manifest.model_validate_json(canonical_json(data))


def digest_of(data: Mapping[str, Any]) -> str:
    """The digest that the identity in `data` (a manifest as JSON data) gives."""
    return sha256_json({name: data[name] for name in _IDENTITY})


def seal_of(data: Mapping[str, Any]) -> str:
    """The seal of `data` (a manifest as JSON data), whatever it says of itself."""
    return sha256_json({name: value for name, value in data.items() if name != "seal"})


def render(data: Mapping[str, Any]) -> bytes:
    """The one spelling of a manifest on disk: readable, keys sorted, UTF-8."""
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest as `read` expects to find it: a role that was not there stays out of it."""
    return render(manifest.model_dump(mode="json", exclude_unset=True))


def read(folder: Path) -> Manifest:
    """The manifest in `folder`, proved unchanged since it was sealed.

    Raises:
        IntegrityError: missing, unreadable as a manifest, or changed; names the file.
        RunFailed: written in a format this version does not know.
    """
    path = folder / FILENAME
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise IntegrityError(
            "an artifact has no manifest",
            where=str(path),
            todo=_advice(folder),
        ) from None
    except OSError as error:
        raise from_os_error(error, "reading a manifest") from error
    return _parse(raw, path)


def _parse(raw: bytes, path: Path) -> Manifest:
    try:
        data = json.loads(raw)
        manifest = _judge(data, raw, path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError):
        raise _broken(path) from None
    if manifest is None:
        raise _broken(path)
    return manifest


def _judge(data: dict[str, Any], raw: bytes, path: Path) -> Manifest | None:
    """The manifest in `data`, or None if anything in it is not as it was written."""
    if data["seal"] != seal_of(data) or render(data) != raw:
        return None
    if data["format"] not in range(1, FORMAT + 1):
        raise RunFailed(
            f"a manifest of format {data['format']}, and this bc2 reads 1 to {FORMAT}",
            where=str(path),
            todo="update bc2",
        )
    return (
        Manifest.model_validate_json(canonical_json(data))
        if data["digest"] == digest_of(data)
        else None
    )


def _broken(path: Path) -> IntegrityError:
    return IntegrityError(
        "a manifest is not as it was written",
        where=str(path),
        todo=_advice(path.parent),
    )


def _advice(folder: Path) -> str:
    remove = shlex.join(["bc2", "registry", "gc", str(folder), "--yes"])
    return f"import a good copy of the artifact, or remove it with `{remove}`"
