"""The index: which artifacts exist, quickly and for many processes at once.

SQLite in WAL mode beside the artifacts, or another database by URL. It holds
nothing that the manifests and tag files do not, so it can always be rebuilt.
Every use opens a connection of its own and closes it: a fork inherits none.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import exc

from bc2.errors import Bc2Error, IntegrityError, ResourceError, RunFailed, UsageError
from bc2.registry.artifact import Artifact, Kind, Position, place_of

#: Raised when the tables change: an index of another schema is rebuilt, not migrated.
SCHEMA = 1
#: A writer waits this long for the others, in seconds, before it gives up.
BUSY_S = 120.0
#: Below so many free bytes SQLite cannot open a WAL with its shared memory.
_ROOM = 1 << 16
#: The key of PostgreSQL's advisory lock that keeps writers one at a time ("bc2").
_PG_LOCK = 0x626332

_tables = sa.MetaData()
schema = sa.Table("bc2_schema", _tables, sa.Column("version", sa.Integer, primary_key=True))
artifacts = sa.Table(
    "artifacts",
    _tables,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("step", sa.BigInteger),
    sa.Column("tokens", sa.BigInteger),
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sa.Index("artifacts_by_name", "kind", "name"),
    sa.Index("artifacts_by_key", "kind", "key"),
)
# No foreign keys: an imported artifact may have parents that are not here.
parents = sa.Table(
    "parents",
    _tables,
    sa.Column("child", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("parent", sa.String(64), nullable=False, index=True),
)
tags = sa.Table(
    "tags",
    _tables,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("tag", sa.String(255), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
)

#: Newest first, and the same order whatever the index has been through.
NEWEST = (artifacts.c.created.desc(), artifacts.c.digest)

Where = sa.ColumnElement[bool]


class Index:
    """One database of artifacts.

    Args:
        engine: where it is.
        place: its file or URL, for messages.
    """

    def __init__(self, engine: sa.Engine, place: str):
        self._engine = engine
        self.place = place

    @classmethod
    def at_file(cls, path: Path, *, create: bool = False) -> Index:
        """SQLite at `path`, which must exist unless `create`."""
        uri = f"file:{quote(str(path))}?mode={'rwc' if create else 'rw'}"

        def connect() -> sqlite3.Connection:
            # No isolation level: transactions begin where `_begin` says, and nowhere else.
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
            connection.execute("PRAGMA synchronous=FULL")
            return connection

        engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)
        sa.event.listen(engine, "begin", _begin)
        return cls(engine, str(path))

    @classmethod
    def at_url(cls, url: str) -> Index:
        """PostgreSQL, or an SQLite file; tables are made if they are missing.

        Raises:
            UsageError: the URL cannot be read, or its driver is not installed.
        """
        if url.startswith("postgresql://"):
            url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        try:
            parsed = sa.make_url(url)
            if parsed.get_backend_name() == "sqlite":
                return cls._at_sqlite_url(parsed)
            engine = sa.create_engine(parsed, poolclass=sa.NullPool)
        except (exc.ArgumentError, exc.NoSuchModuleError, ImportError, ValueError) as error:
            raise UsageError(
                f"cannot use BC2_REGISTRY_URL: {error}",
                todo="write postgresql://USER@HOST/DATABASE, and install bc2[postgres]",
            ) from None
        sa.event.listen(engine, "begin", _begin)
        index = cls(engine, engine.url.render_as_string(hide_password=True))
        index.create()
        return index

    @classmethod
    def _at_sqlite_url(cls, url: sa.URL) -> Index:
        if not url.database or url.database == ":memory:":
            raise ValueError("an index in memory is gone with the process that made it")
        index = cls.at_file(Path(url.database), create=True)
        index.create()
        return index

    def create(self) -> None:
        """Make the tables that are missing, and WAL mode where it applies."""
        if self._engine.dialect.name == "sqlite":
            # Outside a transaction, where alone SQLite takes it; the file remembers it.
            with self._translated():
                raw = self._engine.raw_connection()
                try:
                    raw.cursor().execute("PRAGMA journal_mode=WAL")
                finally:
                    raw.close()
        with self.writing() as connection:
            _tables.create_all(connection)
            if connection.scalar(sa.select(schema.c.version)) is None:
                connection.execute(schema.insert().values(version=SCHEMA))

    def check(self) -> None:
        """Raises: IntegrityError or RunFailed if the index cannot be used as it is."""
        with self.reading() as connection:
            found = connection.scalar(sa.select(schema.c.version))
        if found != SCHEMA:
            raise RunFailed(
                f"the index has schema {found}, and this bc2 uses {SCHEMA}",
                where=self.place,
                todo="delete the index; `bc2 registry rebuild` makes it anew",
            )

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection in a transaction that sees one state of the index."""
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A connection in the one transaction that writes now; the others wait for it."""
        with self._translated(), self._engine.connect() as connection:
            connection = connection.execution_options(bc2_writing=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exc.DBAPIError, sqlite3.Error) as error:
            # A raw connection, as `create` uses, raises the driver's own errors.
            raise _explain(getattr(error, "orig", error), self.place) from error


def _begin(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get("bc2_writing", False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
    elif connection.dialect.name == "postgresql" and writing:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_PG_LOCK})")


def _explain(error: BaseException, place: str) -> Bc2Error:
    reason = str(error).strip().splitlines()[0]
    # SQLite says no more than "disk I/O error" where its shared memory cannot grow.
    if "disk is full" in reason or ("disk I/O error" in reason and _is_full(place)):
        todo = "free some space and run the same again"
        return ResourceError("disk full while writing the index", where=place, todo=todo)
    if any(sign in reason for sign in ("malformed", "not a database", "no such table")):
        todo = "run `bc2 registry rebuild`: the manifests hold everything the index does"
        return IntegrityError(f"the index is broken: {reason}", where=place, todo=todo)
    if "locked" in reason or "busy" in reason:
        todo = "run the same again; if it persists, something holds the index open"
        return RunFailed(f"the index is in use for {BUSY_S:.0f} s", where=place, todo=todo)
    if "unable to open" in reason or "readonly" in reason or "denied" in reason:
        todo = "check owner and mode, or set BC2_HOME to a directory you may write to"
        return RunFailed(f"permission denied: {reason}", where=place, todo=todo)
    return RunFailed(f"the index failed: {reason}", where=place)


def _is_full(place: str) -> bool:
    """Whether the file system of the index at `place` has no room for another page."""
    try:
        found = os.statvfs(Path(place).parent)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _ROOM


def select(
    connection: sa.Connection,
    home: Path,
    *where: Where,
    order: Sequence[sa.ColumnElement[Any]] = NEWEST,
) -> list[Artifact]:
    """The artifacts for which all of `where` holds, in `order`, with parents and tags."""
    rows = connection.execute(sa.select(artifacts).where(*where).order_by(*order)).all()
    if not rows:
        return []
    chosen = sa.select(artifacts.c.digest).where(*where)
    above: dict[str, list[str]] = {}
    for child, parent in connection.execute(
        sa.select(parents.c.child, parents.c.parent)
        .where(parents.c.child.in_(chosen))
        .order_by(parents.c.child, parents.c.position)
    ):
        above.setdefault(child, []).append(parent)
    named: dict[str, list[str]] = {}
    for digest, tag in connection.execute(
        sa.select(tags.c.digest, tags.c.tag)
        .where(tags.c.digest.in_(chosen))
        .order_by(tags.c.digest, tags.c.tag)
    ):
        named.setdefault(digest, []).append(tag)
    return [_artifact(row, home, above, named) for row in rows]


def _artifact(
    row: sa.Row[Any], home: Path, above: dict[str, list[str]], named: dict[str, list[str]]
) -> Artifact:
    kind: Kind = row.kind
    return Artifact(
        digest=row.digest,
        kind=kind,
        name=row.name,
        key=row.key,
        position=None if row.step is None else Position(row.step, row.tokens),
        parents=tuple(above.get(row.digest, ())),
        finished=bool(row.finished),
        created=row.created,
        tags=tuple(named.get(row.digest, ())),
        path=home / "artifacts" / place_of(kind, row.name, row.digest),
    )


def has(connection: sa.Connection, digest: str) -> bool:
    """Whether an artifact is registered."""
    found = sa.select(artifacts.c.digest).where(artifacts.c.digest == digest)
    return connection.scalar(found) is not None


def absent(connection: sa.Connection, digests: Iterable[str]) -> list[str]:
    """Those of `digests` that are not registered, in their order."""
    return [digest for digest in digests if not has(connection, digest)]


def children(digest: str) -> Where:
    """True of the artifacts that have `digest` among their parents."""
    below = sa.select(parents.c.child).where(parents.c.parent == digest)
    return artifacts.c.digest.in_(below)


def insert(connection: sa.Connection, artifact: Artifact) -> None:
    """Register an artifact; of one registered already, only the time may differ."""
    if has(connection, artifact.digest):
        same = artifacts.c.digest == artifact.digest
        connection.execute(artifacts.update().where(same).values(created=artifact.created))
        return
    position = artifact.position
    connection.execute(
        artifacts.insert().values(
            digest=artifact.digest,
            kind=artifact.kind,
            name=artifact.name,
            key=artifact.key,
            step=position.step if position else None,
            tokens=position.tokens if position else None,
            finished=artifact.finished,
            created=artifact.created,
        )
    )
    for place, parent in enumerate(artifact.parents):
        row = {"child": artifact.digest, "position": place, "parent": parent}
        connection.execute(parents.insert().values(row))


def delete(connection: sa.Connection, digest: str) -> None:
    """Forget an artifact and what it was made from. Its tags are the caller's matter."""
    connection.execute(artifacts.delete().where(artifacts.c.digest == digest))
    connection.execute(parents.delete().where(parents.c.child == digest))


def set_tag(connection: sa.Connection, kind: str, name: str, tag: str, digest: str) -> None:
    """Point ``NAME:TAG`` at `digest`, whatever it pointed at before."""
    drop_tag(connection, kind, name, tag)
    connection.execute(tags.insert().values(kind=kind, name=name, tag=tag, digest=digest))


def drop_tag(connection: sa.Connection, kind: str, name: str, tag: str) -> None:
    """Forget ``NAME:TAG``."""
    same = (tags.c.kind == kind) & (tags.c.name == name) & (tags.c.tag == tag)
    connection.execute(tags.delete().where(same))
