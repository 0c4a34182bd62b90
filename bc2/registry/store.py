"""The registry of one home: publish, find, tag, verify, remove."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2 import files
from bc2.console import note, warn
from bc2.errors import IntegrityError, RefError, RunFailed, UsageError, from_os_error
from bc2.registry import index as ix
from bc2.registry import refs, staging
from bc2.registry.artifact import Artifact, Draft, Kind, check_kind, check_name

if TYPE_CHECKING:
    from bc2.registry.manifest import FileEntry
    from bc2.registry.rebuild import Found

#: Which command makes an artifact of each kind, for messages.
_MAKERS: dict[Kind, str] = {
    "corpus": "bc2 data prep RECIPE",
    "tokenizer": "bc2 train-tokenizer RECIPE",
    "tokens": "bc2 data tokenize RECIPE",
    "checkpoint": "bc2 pretrain RECIPE",
    "law": "bc2 fit-scaling-law",
    "scores": "bc2 eval REF",
    "export": "bc2 convert REF",
}

# `Registry.list` hides the builtin inside the class.
Artifacts = list[Artifact]
Paths = list[Path]

#: Newest within one run: furthest first, then last published.
_FURTHEST = (
    ix.artifacts.c.step.is_(None),
    ix.artifacts.c.step.desc(),
    ix.artifacts.c.tokens.desc(),
    *ix.NEWEST,
)


class Registry:
    """Every artifact below one home directory. Use `Registry.open`."""

    def __init__(self, home: Path, url: str | None = None):
        self.home = home
        self.runs = home / "runs"
        self.work = home / "work"
        self.staging = home / "staging"
        self._url = url
        self._index: ix.Index | None = None

    @classmethod
    def open(cls, home: Path | None = None) -> Registry:
        """The registry of `home`, else of ``$BC2_HOME``, else of the nearest ``.bc2``.

        Nothing is written until something is published: a home that does not exist is an
        empty registry. The index is ``$BC2_REGISTRY_URL``, or SQLite inside the home.

        Raises:
            UsageError: the home is a file.
        """
        home = (home or find_home()).expanduser().absolute()
        try:
            if home.is_file():
                todo = "set BC2_HOME to a directory"
                raise UsageError("the registry's home is a file", where=str(home), todo=todo)
        except OSError as error:
            raise from_os_error(error, "opening the registry") from error
        return cls(home, os.environ.get("BC2_REGISTRY_URL") or None)

    @property
    def index_file(self) -> Path:
        """SQLite's file (unused with ``BC2_REGISTRY_URL``)."""
        return self.home / "index.sqlite"

    @property
    def index(self) -> ix.Index:
        """The index, made first if it is missing (from the manifests, if there are any)."""
        try:
            if self._index is None:
                self._index = ix.Index.at_url(self._url) if self._url else self._open_file()
            elif not self._url and not self.index_file.exists():
                self._index = self._open_file()
        except OSError as error:
            raise from_os_error(error, "opening the registry") from error
        return self._index

    def _open_file(self) -> ix.Index:
        if not self.index_file.exists():
            files.make_directory(self.home)
            with files.lock_directory(self.home, wait=True):
                if not self.index_file.exists():
                    self._make_index()
        index = ix.Index.at_file(self.index_file)
        index.check()
        return index

    def _make_index(self) -> None:
        """Make the index aside and complete, so that nobody meets half of it."""
        from bc2.registry.rebuild import reconcile

        new = self.index_file.with_suffix(".new")
        for name in (new, self.index_file):
            # A WAL left by a deleted index would be replayed into the new one.
            for suffix in ("", "-wal", "-shm", "-journal"):
                name.with_name(name.name + suffix).unlink(missing_ok=True)
        index = ix.Index.at_file(new, create=True)
        index.create()
        found = reconcile(index, self.home)
        if found.artifacts:
            note(f"the index was missing: rebuilt from {len(found.artifacts)} manifests")
        files.sync_file(new)
        files.rename_durably(new, self.index_file)
        files.sync_directory(self.home.parent)

    def _is_blank(self) -> bool:
        """Whether nothing was ever published here."""
        made = (self.index_file, self.home / "artifacts")
        try:
            return not self._url and not any(path.exists() for path in made)
        except OSError as error:
            raise from_os_error(error, "opening the registry") from error

    def _select(self, *where: ix.Where, **order: Any) -> Artifacts:
        if self._is_blank():
            return []
        with self.index.reading() as connection:
            return ix.select(connection, self.home, *where, **order)

    @contextmanager
    def stage(self, draft: Draft) -> Iterator[staging.Staged]:
        """An empty directory to write an artifact in; leaving without `publish` removes it.

        Raises:
            RunFailed: a parent is not registered, or the home may not be written to.
            ResourceError: the disk filled up inside the context.
        """
        from bc2.registry.publish import require

        require(self.index, draft.parents)
        with ExitStack() as lock:
            try:
                path = staging.create(self.staging, lock)
            except OSError as error:
                raise from_os_error(error, "writing to the registry") from error
            staged = staging.Staged(path, draft, self._publish, lock)
            try:
                yield staged
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise from_os_error(error, f"writing {draft.kind}/{draft.name}") from error
                raise
            finally:
                staged.close()

    def _publish(
        self, aside: Path, draft: Draft, facts: Mapping[str, Any], known: Iterable[FileEntry]
    ) -> Artifact:
        from bc2.registry.publish import place, seal

        try:
            manifest = seal(aside, draft, facts, known)
            place(self.home, self.index, aside, manifest)
        except OSError as error:
            raise from_os_error(error, f"publishing {draft.kind}/{draft.name}") from error
        return self.get(manifest.digest)

    def get(self, digest: str) -> Artifact:
        """The artifact with a full digest. Raises: RefError if it is not registered."""
        found = self._select(ix.artifacts.c.digest == digest)
        if not found:
            raise RefError(f"{digest[:16]} is not registered", where=str(self.home))
        return found[0]

    def find(self, kind: Kind, key: str, *, finished: bool | None = True) -> Artifact | None:
        """What a stage made: the furthest position, then the newest, or None.

        Args:
            kind: the kind it makes.
            key: its stage key.
            finished: True for finished runs only, False for runs still going, None for both.
        """
        where = [ix.artifacts.c.kind == kind, ix.artifacts.c.key == key]
        if finished is not None:
            where.append(ix.artifacts.c.finished.is_(finished))
        return next(iter(self._select(*where, order=_FURTHEST)), None)

    def list(self, kind: Kind | None = None, name: str | None = None) -> Artifacts:
        """Every artifact, or those of one kind or name; newest first."""
        where = [ix.artifacts.c.kind == check_kind(kind)] if kind else []
        if name is not None:
            where.append(ix.artifacts.c.name == name)
        return self._select(*where)

    def with_prefix(self, prefix: str) -> Artifacts:
        """The artifacts whose digest begins with `prefix` (lower-case hex)."""
        return self._select(ix.artifacts.c.digest.startswith(prefix))

    def resolve(self, ref: str, kind: Kind | None = None) -> Artifact:
        """The artifact that a person means by `ref`; see `bc2.registry.refs`.

        Raises:
            RefError: none, several, or one of another kind.
        """
        return refs.resolve(self, ref, kind)

    def newest(self, kind: Kind) -> Artifact:
        """The newest artifact of a kind from a finished run.

        Raises:
            RefError: there is none; says what makes one.
        """
        finished = ix.artifacts.c.finished.is_(True)
        found = self._select(ix.artifacts.c.kind == kind, finished)
        if not found:
            raise RefError(
                f"there is no finished {kind} yet",
                where=str(self.home),
                todo=f"make one with `{_MAKERS[kind]}`, or name one",
            )
        return found[0]

    def children(self, artifact: Artifact) -> Artifacts:
        """The artifacts made from this one, newest first."""
        return self._select(ix.children(artifact.digest))

    def parents(self, artifact: Artifact) -> Artifacts:
        """What this one is made from, in order, as far as it is registered here."""
        found = self._select(ix.artifacts.c.digest.in_(artifact.parents))
        return sorted(found, key=lambda parent: artifact.parents.index(parent.digest))

    def _tag_file(self, artifact: Artifact, tag: str) -> Path:
        return artifact.path.parent / "tags" / tag

    def tag(self, artifact: Artifact, tag: str) -> None:
        """Point ``NAME:TAG`` at an artifact; it moves if it pointed at another.

        Raises:
            UsageError: `tag` cannot be a tag.
            RefError: the artifact is not registered.
        """
        check_name(tag, "tag")
        path = self._tag_file(artifact, tag)
        try:
            with self.index.writing() as connection:
                if not ix.has(connection, artifact.digest):
                    raise RefError(f"{artifact.title} is not registered", where=str(self.home))
                files.make_directory(path.parent)
                files.replace_durably(path, f"{artifact.digest}\n".encode())
                ix.set_tag(connection, artifact.kind, artifact.name, tag, artifact.digest)
        except OSError as error:
            raise from_os_error(error, "tagging") from error

    def untag(self, artifact: Artifact, tag: str) -> None:
        """Remove a tag. Raises: RefError if the artifact does not have it."""
        path = self._tag_file(artifact, tag)
        try:
            with self.index.writing() as connection:
                held = ix.select(connection, self.home, ix.artifacts.c.digest == artifact.digest)
                if not held or tag not in held[0].tags:
                    raise RefError(f"{artifact.title} has no tag {tag!r}", where=str(self.home))
                path.unlink(missing_ok=True)
                files.sync_directory(path.parent)
                ix.drop_tag(connection, artifact.kind, artifact.name, tag)
        except OSError as error:
            raise from_os_error(error, "removing a tag") from error

    def verify(self, artifact: Artifact) -> None:
        """Read every byte of an artifact and compare it with its manifest.

        Raises:
            IntegrityError: something is missing, changed or too much; names the file.
        """
        from bc2.registry.payload import check

        check(artifact.path, artifact.manifest)

    def remove(self, artifact: Artifact) -> None:
        """Forget an artifact and delete its files.

        Raises:
            RunFailed: it is tagged, in use, or something registered is made from it.
            RefError: it is not registered.
        """
        artifact = self.get(artifact.digest)
        try:
            with ExitStack() as lock:
                there = artifact.path.exists()
                if there and not lock.enter_context(files.lock_directory(artifact.path)):
                    raise RunFailed(f"{artifact.title} is in use", where=str(artifact.path))
                self._forget(artifact)
                if there:
                    staging.throw_away(artifact.path, self.staging)
        except OSError as error:
            raise from_os_error(error, f"removing {artifact.title}") from error

    def _forget(self, artifact: Artifact) -> None:
        with self.index.writing() as connection:
            found = ix.select(connection, self.home, ix.artifacts.c.digest == artifact.digest)
            if found and found[0].tags:
                held = ", ".join(found[0].tags)
                todo = f"bc2 registry tag --delete {artifact.ref} {found[0].tags[0]}"
                raise RunFailed(f"{artifact.title} is tagged {held}", todo=todo)
            below = ix.select(connection, self.home, ix.children(artifact.digest))
            if below:
                named = ", ".join(child.title for child in below[:3])
                raise RunFailed(f"{artifact.title} is needed by {named}", todo="remove those first")
            ix.delete(connection, artifact.digest)

    def rebuild(self) -> Found:
        """Make the index anew from the manifests and tag files; a broken one is kept aside.

        Payloads are not read, but their sizes are checked: `verify` reads them.
        """
        from bc2.registry.rebuild import Found, rebuild

        if self._is_blank():
            return Found()
        try:
            return rebuild(self.index, self.home)
        except IntegrityError:
            if self._url:
                raise
            self._set_index_aside()
            return rebuild(self.index, self.home)
        except OSError as error:
            raise from_os_error(error, "rebuilding the index") from error

    def _set_index_aside(self) -> None:
        aside = self.index_file.with_name(f"index.broken-{secrets.token_hex(4)}")
        with files.lock_directory(self.home, wait=True):
            files.rename_durably(self.index_file, aside)
        self._index = None
        warn(f"the index was broken; it is kept as {aside}")

    def sweep(self) -> Paths:
        """Remove staging directories whose owner is dead; return them."""
        try:
            return staging.sweep(self.staging)
        except OSError as error:
            raise from_os_error(error, "removing abandoned staging directories") from error


def find_home() -> Path:
    named = os.environ.get("BC2_HOME")
    if named:
        return Path(named)
    here = Path.cwd()
    near = (folder / ".bc2" for folder in (here, *here.parents))
    return next((home for home in near if home.is_dir()), here / ".bc2")
