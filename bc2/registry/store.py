"""The registry of one home: publish, find, tag, verify, remove."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2 import files
from bc2.console import warn
from bc2.errors import IntegrityError, RefError, RunFailed, from_os_error
from bc2.registry import index as ix
from bc2.registry import places, queries, refs, staging
from bc2.registry.artifact import Artifact
from bc2.registry.catalog import Artifacts, Catalog
from bc2.registry.draft import Draft, Kind, Role, check_name
from bc2.registry.removal import Removal, StillNeeded, explain, prepare, where_of

if TYPE_CHECKING:
    from bc2.registry.manifest import FileEntry
    from bc2.registry.rebuild import Found

Paths = list[Path]


class Registry(Catalog):
    """Every artifact below one home directory. Use `Registry.open`."""

    @contextmanager
    def stage(self, draft: Draft) -> Iterator[staging.Staged]:
        """An empty directory to write an artifact in; leaving without `publish` removes it.

        Raises:
            RunFailed: a parent is not registered, or the home may not be written to.
            ResourceError: the disk filled up inside the context.
        """
        from bc2.registry.publish import require

        self.check_writable()
        require(self.index, draft.parents)
        with ExitStack() as lock:
            try:
                path = staging.create(self.staging_of(draft.kind, draft.name), lock)
            except OSError as error:
                raise from_os_error(error, "writing to the registry") from error
            staged = staging.Staged(path, draft, self._publish, lock)
            title = f"{draft.kind}/{draft.name}"
            try:
                with staging.blaming(path, title):
                    try:
                        yield staged
                    except OSError as error:
                        if error.errno in (errno.ENOSPC, errno.EDQUOT):
                            raise from_os_error(error, f"writing {title}") from error
                        raise
            finally:
                staged.close()

    def staging_of(self, kind: Kind, name: str) -> Path:
        """Where to write aside what becomes an artifact: on the disk that it is going to.

        Raises:
            RunFailed: a link on the way points at nothing.
        """
        return staging.root_of(self.home, kind, name)

    def check_publishing(self, kind: Kind, name: str) -> None:
        """Try all that a publish does, before the work that it would be the end of.

        Raises:
            Bc2Error: something that publishing needs cannot be done; says what and where.
        """
        try:
            staging.try_publish(self.home, kind, name)
        except OSError as error:
            raise from_os_error(error, f"trying to publish a {kind}") from error
        with self.index.writing():
            pass

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

    def resolve(
        self, ref: str, kind: Kind | None = None, roles: Collection[Role] | None = None
    ) -> Artifact:
        """The artifact that a person means by `ref`; see `bc2.registry.refs`.

        Args:
            ref: a ref, or a path.
            kind: the kind that is needed; None: any.
            roles: of a checkpoint, those that the caller can use; None: any.

        Raises:
            RefError: none, several, or one of another kind or role.
        """
        return refs.resolve(self, ref, kind, roles)

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
                if not queries.has(connection, artifact.digest):
                    raise RefError(f"{artifact.title} is not registered", where=str(self.home))
                files.make_directory(path.parent)
                files.replace_durably(path, f"{artifact.digest}\n".encode())
                queries.set_tag(connection, artifact.kind, artifact.name, tag, artifact.digest)
        except OSError as error:
            raise from_os_error(error, "tagging") from error

    def untag(self, artifact: Artifact, tag: str) -> None:
        """Remove a tag. Raises: RefError if the artifact does not have it."""
        path = self._tag_file(artifact, tag)
        try:
            with self.index.writing() as connection:
                held = queries.select(
                    connection, self.home, ix.artifacts.c.digest == artifact.digest
                )
                if not held or tag not in held[0].tags:
                    raise RefError(f"{artifact.title} has no tag {tag!r}", where=str(self.home))
                path.unlink(missing_ok=True)
                files.sync_directory(path.parent)
                queries.drop_tag(connection, artifact.kind, artifact.name, tag)
        except OSError as error:
            raise from_os_error(error, "removing a tag") from error

    def verify(self, artifact: Artifact) -> None:
        """Read every byte of an artifact and compare it with its manifest.

        Raises:
            IntegrityError: something is missing, changed or too much; names the file.
        """
        from bc2.registry.payload import check
        from bc2.registry.verified import VerifiedFiles

        try:
            check(artifact.path, artifact.manifest)
        except IntegrityError:
            # Damage that left size and times alone would go unseen at the next start of a run.
            VerifiedFiles(self.home, artifact.digest).forget()
            raise

    def remove(self, artifact: Artifact) -> None:
        """Forget an artifact and delete its files: all of it, or nothing is changed.

        Raises:
            StillNeeded: it is tagged, in use, or something registered is made from it.
            RunFailed: its files cannot be taken away.
            RefError: it is not registered.
        """
        from bc2.registry.verified import VerifiedFiles

        artifact = self.get(artifact.digest)
        with ExitStack() as lock:
            try:
                removal = self._removal(artifact, lock)
            except OSError as error:
                raise explain(error, artifact.title, artifact.path) from error
            # Before the files are moved: what a crash leaves in the index is all there.
            self._forget(artifact)
            if removal is not None:
                self._take_away(artifact, removal)
        VerifiedFiles(self.home, artifact.digest).forget()

    def _removal(self, artifact: Artifact, lock: ExitStack) -> Removal | None:
        """How its files can be taken away, with their lock in `lock`; None: they are gone."""
        if not os.path.lexists(artifact.path):
            files.check_links(artifact.path)
            return None
        if artifact.path.exists() and not lock.enter_context(files.lock_directory(artifact.path)):
            raise StillNeeded(f"{artifact.title} is in use", where=str(artifact.path))
        return prepare(artifact.path)

    def _take_away(self, artifact: Artifact, removal: Removal) -> None:
        try:
            removal.take_away()
        except OSError as error:
            if removal.untouched():
                with self.index.writing() as connection:
                    queries.insert(connection, artifact)
            raise explain(error, artifact.title, artifact.path) from error
        try:
            removal.delete()
        except OSError as error:
            raise RunFailed(
                f"{artifact.title} is removed, but not all of its files could be deleted: "
                f"{(error.strerror or str(error)).lower()}",
                where=where_of(error, removal.trash or removal.folder),
                todo="remove them by hand",
            ) from error

    def _forget(self, artifact: Artifact) -> None:
        with self.index.writing() as connection:
            found = queries.select(connection, self.home, ix.artifacts.c.digest == artifact.digest)
            if found and found[0].tags:
                held = ", ".join(found[0].tags)
                todo = f"bc2 registry tag --delete {artifact.ref} {found[0].tags[0]}"
                raise StillNeeded(f"{artifact.title} is tagged {held}", todo=todo)
            below = queries.select(connection, self.home, queries.children(artifact.digest))
            if below:
                named = ", ".join(child.title for child in below[:3])
                raise StillNeeded(
                    f"{artifact.title} is needed by {named}", todo="remove those first"
                )
            queries.delete(connection, artifact.digest)

    def rebuild(self) -> Found:
        """Make the index anew from the manifests and tag files; a broken one is kept aside.

        Payloads are not read, but their sizes are checked: `verify` reads them.
        """
        from bc2.registry.rebuild import Found, rebuild

        if self.is_blank():
            return Found()
        places.check_places(self.home)
        try:
            return rebuild(self.index, self.home)
        except IntegrityError:
            if self._url:
                raise
            self._set_index_aside()
            return rebuild(self.index, self.home)
        except OSError as error:
            raise from_os_error(error, "rebuilding the index") from error

    def forgotten(self) -> Artifacts:
        """The whole artifacts in place that the index does not know: `rebuild` adopts them."""
        strange = [] if self.is_blank() else places.unknown(self.index, self.home)
        if not strange:
            return []
        from bc2.registry.rebuild import whole

        return whole(self.index, strange)

    def _set_index_aside(self) -> None:
        aside = self.index_file.with_name(f"index.broken-{secrets.token_hex(4)}")
        with files.lock_directory(self.home, wait=True):
            files.rename_durably(self.index_file, aside)
        self._index = None
        warn(f"the index was broken; it is kept as {aside}")

    def sweep(self) -> Paths:
        """Remove staging directories whose owner is dead; return them."""
        try:
            return staging.sweep(self.home)
        except OSError as error:
            raise from_os_error(error, "removing abandoned staging directories") from error
