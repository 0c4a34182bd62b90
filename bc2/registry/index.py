"""The index: the database that says which artifacts exist, for many processes at once.

SQLite in WAL mode beside the artifacts, or another database by URL. It holds
nothing that the manifests and tag files do not, so it can always be rebuilt.
Every use opens a connection of its own and closes it: a fork inherits none.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import exc

from bc2.errors import (
    Bc2Error,
    IntegrityError,
    ResourceError,
    RunFailed,
    UsageError,
    too_many_open_files,
)
from bc2.process import open_files

#: Raised when the tables change: an index of another schema is rebuilt, not migrated. A column
#: that may be empty is added to an index that lacks it (`Index.upgrade`) and raises nothing.
SCHEMA = 1
#: A writer waits this long for the others, in seconds, before it gives up.
BUSY_S = 120.0
#: Below so many free bytes SQLite cannot open a WAL with its shared memory.
_ROOM = 1 << 16
#: The key of PostgreSQL's advisory lock that keeps writers one at a time ("bc2").
_PG_LOCK = 0x626332

# SQLAlchemy logs what comes while it puts a connection back, a signal too, and raises it as well.
# Without a handler Python would print that with its stack.
logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())

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
    sa.Column("role", sa.String(16)),
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


class Index:
    """One database of artifacts.

    Args:
        engine: where it is.
        place: its file or URL, for messages.
    """

    def __init__(self, engine: sa.Engine, place: str):
        self._engine = engine
        self.place = place
        self._refusal: Bc2Error | None = None

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
            _add_columns(connection)
            if connection.scalar(sa.select(schema.c.version)) is None:
                connection.execute(schema.insert().values(version=SCHEMA))

    def refuse_writing(self, reason: str, home: Path) -> None:
        """From now on `writing` fails: this is a copy, of an index that cannot be written."""
        self._refusal = cannot_write(reason, home)

    def upgrade(self) -> None:
        """Make an index of an earlier bc2 usable; nothing in it is lost, and others may look on.

        Raises:
            IntegrityError: the index is broken.
            RunFailed: it is of another schema.
        """
        with self.reading() as connection:
            found = connection.scalar(sa.select(schema.c.version))
            complete = not _missing_columns(connection)
        if found != SCHEMA:
            raise RunFailed(
                f"the index has schema {found}, and this bc2 uses {SCHEMA}",
                where=self.place,
                todo="delete the index; `bc2 registry rebuild` makes it anew",
            )
        if not complete:
            with self.writing() as connection:
                _add_columns(connection)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection in a transaction that sees one state of the index."""
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A connection in the one transaction that writes now; the others wait for it.

        Raises:
            RunFailed: the index cannot be written.
        """
        if self._refusal is not None:
            raise self._refusal
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


def cannot_write(reason: str, home: Path) -> RunFailed:
    """What to raise where something is to be written to a home that cannot be."""
    return RunFailed(
        f"the registry cannot be written: {reason}",
        where=str(home),
        todo="set BC2_HOME to a directory you may write to; `bc2 registry import PATH` takes "
        "artifacts of this one there",
    )


def _begin(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get("bc2_writing", False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
    elif connection.dialect.name == "postgresql" and writing:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_PG_LOCK})")


def _missing_columns(connection: sa.Connection) -> list[sa.Column[Any]]:
    there = {column["name"] for column in sa.inspect(connection).get_columns(artifacts.name)}
    return [column for column in artifacts.columns if column.name not in there]


def _add_columns(connection: sa.Connection) -> None:
    """Add what `artifacts` lacks, in a writing transaction: two at once add it once."""
    for column in _missing_columns(connection):
        spelled = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {artifacts.name} ADD COLUMN {spelled}")


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
    if "must be owner" in reason:
        todo = "let the owner of the tables run `bc2 registry list` once: it adds a column"
        return RunFailed(f"the index is of an earlier bc2: {reason}", where=place, todo=todo)
    if "unable to open" in reason and (limited := open_files.lack()) is not None:
        return too_many_open_files(limited, "opening the index", where=place)
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
