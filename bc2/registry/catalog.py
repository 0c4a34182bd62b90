"""Finding what is registered in one home: the reading half of a registry."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Self

from bc2 import files
from bc2.console import note
from bc2.errors import RefError, UsageError, from_os_error
from bc2.registry import index as ix
from bc2.registry import queries, snapshot
from bc2.registry.artifact import Artifact
from bc2.registry.draft import Kind, Role, check_kind, spell_roles
from bc2.user_paths import expand_user

#: Which command makes an artifact of each kind, for messages.
_MAKERS: dict[Kind, str] = {
    "corpus": "bc2 data prep RECIPE",
    "tokenizer": "bc2 train-tokenizer RECIPE",
    "tokens": "bc2 data tokenize RECIPE",
    "chats": "bc2 data chats RECIPE",
    "pairs": "bc2 data pairs RECIPE",
    "checkpoint": "bc2 pretrain recipes/tiny.toml",
    "logprobs": "bc2 dpo RECIPE",
    "law": "bc2 fit-scaling-law",
    "scores": "bc2 eval REF",
    "certificate": "bc2 verify resume RECIPE",
    "export": "bc2 convert REF",
}

# `Catalog.list` hides the builtin inside the class.
Artifacts = list[Artifact]

#: Newest within one run: furthest first, then last published.
_FURTHEST = (
    ix.artifacts.c.step.is_(None),
    ix.artifacts.c.step.desc(),
    ix.artifacts.c.tokens.desc(),
    *queries.NEWEST,
)


class Catalog:
    """Every artifact below one home directory, to look at. Use `Registry.open`."""

    def __init__(self, home: Path, url: str | None = None):
        self.home = home
        self.runs = home / "runs"
        self.work = home / "work"
        self.staging = home / "staging"
        self._url = url
        self._index: ix.Index | None = None
        self._snapshots: snapshot.Snapshots | None = None

    @classmethod
    def open(cls, home: Path | None = None) -> Self:
        """The registry of `home`, else of ``$BC2_HOME``, else of the nearest ``.bc2``.

        Nothing is written until something is published: a home that does not exist is an
        empty registry. The index is ``$BC2_REGISTRY_URL``, or SQLite inside the home.

        Raises:
            UsageError: the home is a file, or begins with a ``~`` that means nothing.
        """
        home = (home or find_home()).absolute()
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
        """The index, made first if it is missing (from the manifests, if there are any).

        Of a home that cannot be written: a copy of it, to read only.
        """
        try:
            if self._snapshots is not None:
                self._index = self._open_copy()
            elif self._index is None:
                self._index = ix.Index.at_url(self._url) if self._url else self._open_file()
            elif not self._url and not self.index_file.exists():
                self._index = self._open_file()
        except OSError as error:
            raise from_os_error(error, "opening the registry") from error
        return self._index

    def check_writable(self) -> None:
        """Find out before any work whether something can be published here.

        Raises:
            RunFailed: the home, or one of its folders, cannot be written.
        """
        for folder in (self.home, self.home / "artifacts", self.staging, self.work, self.runs):
            reason = files.why_not_writable(folder)
            if reason:
                raise ix.cannot_write(reason, folder if folder.exists() else self.home)

    def _open_copy(self) -> ix.Index:
        reason = snapshot.why_not_ours(self.index_file)
        if reason is None:  # it may be written by now
            self._snapshots = None
            return self._open_file()
        if self._snapshots is None:
            self._snapshots = snapshot.Snapshots(self.index_file, self.home, self._reconcile)
        return self._snapshots.index(reason)

    def _reconcile(self, index: ix.Index) -> int:
        from bc2.registry.rebuild import reconcile

        return len(reconcile(index, self.home).artifacts)

    def _open_file(self) -> ix.Index:
        if self.home.exists() and snapshot.why_not_ours(self.index_file):
            return self._open_copy()
        if not self.index_file.exists():
            files.make_directory(self.home)
            with files.lock_directory(self.home, wait=True):
                if not self.index_file.exists():
                    self._make_index()
        index = ix.Index.at_file(self.index_file)
        index.upgrade()
        return index

    def _make_index(self) -> None:
        """Make the index aside and complete, so that nobody meets half of it."""
        new = self.index_file.with_suffix(".new")
        for name in (new, self.index_file):
            # A WAL left by a deleted index would be replayed into the new one.
            for suffix in ("", "-wal", "-shm", "-journal"):
                name.with_name(name.name + suffix).unlink(missing_ok=True)
        index = ix.Index.at_file(new, create=True)
        index.create()
        found = self._reconcile(index)
        if found:
            note(f"the index was missing: rebuilt from {found} manifests")
        files.sync_file(new)
        files.rename_durably(new, self.index_file)
        files.sync_directory(self.home.parent)

    def is_blank(self) -> bool:
        """Whether nothing was ever published here."""
        made = (self.index_file, self.home / "artifacts")
        try:
            return not self._url and not any(path.exists() for path in made)
        except OSError as error:
            raise from_os_error(error, "opening the registry") from error

    def select(self, *where: queries.Where, **order: Any) -> Artifacts:
        """The artifacts for which all of `where` holds; see `bc2.registry.queries.select`."""
        if self.is_blank():
            return []
        with self.index.reading() as connection:
            return queries.select(connection, self.home, *where, **order)

    def get(self, digest: str) -> Artifact:
        """The artifact with a full digest. Raises: RefError if it is not registered."""
        found = self.select(ix.artifacts.c.digest == digest)
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
        where = queries.matching(kind, key=key, finished=finished)
        return next(iter(self.select(*where, order=_FURTHEST, limit=1)), None)

    def list(
        self,
        kind: Kind | None = None,
        name: str | None = None,
        *,
        key: str | None = None,
        finished: bool | None = None,
        roles: Collection[Role] | None = None,
        limit: int | None = None,
    ) -> Artifacts:
        """The artifacts that are what is asked for, newest first.

        Args:
            kind: of this kind; None does not ask, here and below.
            name: of this name.
            key: made under this stage key.
            finished: of finished runs, or of runs still going.
            roles: checkpoints of one of these roles.
            limit: at most so many.
        """
        kind = check_kind(kind) if kind else None
        where = queries.matching(kind, name, key=key, finished=finished, roles=roles)
        return self.select(*where, limit=limit)

    def count(
        self,
        kind: Kind | None = None,
        name: str | None = None,
        *,
        roles: Collection[Role] | None = None,
    ) -> int:
        """How many artifacts `list` finds, without reading them."""
        if self.is_blank():
            return 0
        with self.index.reading() as connection:
            return queries.count(connection, *queries.matching(kind, name, roles=roles))

    def ended(self, artifacts: Iterable[Artifact]) -> set[str]:
        """The keys of those unfinished `artifacts` whose runs have finished since."""
        keys = {artifact.key for artifact in artifacts if not artifact.finished}
        if not keys:
            return set()
        with self.index.reading() as connection:
            return queries.ended(connection, keys)

    def with_prefix(self, prefix: str) -> Artifacts:
        """The artifacts whose digest begins with `prefix` (lower-case hex)."""
        return self.select(ix.artifacts.c.digest.startswith(prefix))

    def newest(self, kind: Kind, roles: Collection[Role] | None = None) -> Artifact:
        """The newest artifact of a kind from a finished run.

        Args:
            kind: what is needed.
            roles: of a checkpoint, those that the caller can use; None: any.

        Raises:
            RefError: there is none; says what makes one.
        """
        found = self.list(kind, finished=True, roles=roles, limit=1)
        if found:
            return found[0]
        if roles is not None and (others := self.list(kind, finished=True, limit=1)):
            raise RefError(
                f"there is no finished {kind} of role {spell_roles(roles)} yet: "
                f"the newest, {others[0].title}, is of role {others[0].role}",
                where=str(self.home),
                todo=f"name one, or see `bc2 registry list --kind {kind}`",
            )
        raise RefError(
            f"there is no finished {kind} yet",
            where=str(self.home),
            todo=f"make one with `{_MAKERS[kind]}`, bring one in with `bc2 registry import`, or "
            "name one",
        )

    def children(self, artifact: Artifact) -> Artifacts:
        """The artifacts made from this one, newest first."""
        return self.select(queries.children(artifact.digest))

    def parents(self, artifact: Artifact) -> Artifacts:
        """What this one is made from, in order, as far as it is registered here."""
        found = self.select(ix.artifacts.c.digest.in_(artifact.parents))
        return sorted(found, key=lambda parent: artifact.parents.index(parent.digest))


def find_home() -> Path:
    """Where the registry is: ``$BC2_HOME``, else the nearest ``.bc2``, else a new one here.

    Raises:
        UsageError: ``$BC2_HOME`` begins with a ``~`` that means nothing.
    """
    named = os.environ.get("BC2_HOME")
    if named:
        return expand_user(named, "BC2_HOME")
    here = Path.cwd()
    near = (folder / ".bc2" for folder in (here, *here.parents))
    return next((home for home in near if home.is_dir()), here / ".bc2")
