"""An artifact: what the index knows of it, and the way to its manifest and files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bc2.errors import IntegrityError, RefError, nearest
from bc2.files import dangling_link, keep_directory
from bc2.registry.draft import SHORT, Kind, Position, Role, role_of

# Manifests are read where they are needed: pydantic takes longer to import than a listing.
if TYPE_CHECKING:
    from bc2.registry.manifest import FileEntry, Manifest
    from bc2.registry.payload import DigestingReader


@dataclass(frozen=True)
class Artifact:
    """A published artifact: what the index knows of it, and the way to its files."""

    digest: str
    """64 hex digits: SHA-256 of kind, name, key, position, finished, parents and files."""
    kind: Kind
    name: str
    key: str
    role: Role | None
    """What a checkpoint is for; None for the other kinds."""
    position: Position | None
    parents: tuple[str, ...]
    finished: bool
    created: str
    """When it was published: ISO 8601, UTC, microseconds; sorts as text."""
    tags: tuple[str, ...]
    """Its tags when it was looked up."""
    path: Path

    @classmethod
    def of(cls, manifest: Manifest, path: Path) -> Artifact:
        """The artifact that a manifest describes, with its files at `path`; its tags are not."""
        return cls(
            digest=manifest.digest,
            kind=manifest.kind,
            name=manifest.name,
            key=manifest.key,
            role=role_of(manifest.kind, manifest.role),
            position=manifest.position,
            parents=manifest.parents,
            finished=manifest.finished,
            created=manifest.created,
            tags=(),
            path=path,
        )

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

        if not self.path.exists():
            raise self._gone()
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

        return check_file(self.path, self.entry(relpath))

    def reading(self, relpath: str) -> AbstractContextManager[DigestingReader]:
        """Open one file to read it once, from front to back; the end of the context proves it.

        For large files: `file` reads one through before it is read again. Nothing that was
        read is good before the context has ended.

        Raises:
            IntegrityError: its size (on opening) or SHA-256 (at the end) is not the manifest's;
                names the file.
            RefError: the artifact has no such file; raised by the call itself.
        """
        from bc2.registry.payload import reading

        return reading(self.path, self.entry(relpath))

    def entry(self, relpath: str) -> FileEntry:
        """Size and SHA-256 of one file, as the manifest has them; the file is not looked at.

        Raises:
            RefError: the artifact has no such file.
        """
        for entry in self.manifest.files:
            if entry.path == relpath:
                return entry
        guess = nearest(relpath, self.files())
        raise RefError(
            f"{self.title} has no file {relpath!r}",
            where=str(self.path),
            todo=f"did you mean {guess!r}?" if guess else None,
        )

    def check_files(self) -> None:
        """Read every file through. Raises: IntegrityError if one is not the manifest's."""
        for relpath in self.files():
            self.file(relpath)

    @contextmanager
    def hold(self) -> Iterator[Artifact]:
        """Keep the artifact from being removed while the context is open.

        Raises:
            IntegrityError: it is gone already.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(keep_directory(self.path))
            except FileNotFoundError:
                raise self._gone() from None
            yield self

    def _gone(self) -> IntegrityError:
        link = dangling_link(self.path)
        what = f"the files of {self.title} are gone"
        if link is not None:
            what = f"the files of {self.title} are behind a link that points at nothing"
        return IntegrityError(
            what,
            where=str(link or self.path),
            todo="mount that disk, or mend the link"
            if link
            else "import a copy of it, or let `bc2 registry rebuild` take it out of the index",
        )
