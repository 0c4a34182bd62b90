from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateColumn, CreateTable

from bc2.errors import IntegrityError, RunFailed, UsageError
from bc2.registry import Registry, catalog, queries
from bc2.registry import index as ix


def test_sqlite_is_in_wal_mode_and_syncs_every_commit(registry, publish) -> None:
    publish()
    with registry.index.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_failed_transaction_changes_nothing(registry, publish) -> None:
    artifact = publish()

    def fail() -> None:
        with registry.index.writing() as connection:
            queries.delete(connection, artifact.digest)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert registry.list() == [artifact]


def test_writers_exclude_each_other_and_readers_do_not_wait(registry, publish, monkeypatch) -> None:
    artifact = publish()
    monkeypatch.setattr(ix, "BUSY_S", 0.2)
    with registry.index.writing() as connection:
        queries.delete(connection, artifact.digest)
        assert registry.list() == [artifact]
        with pytest.raises(RunFailed, match="in use"), registry.index.writing():
            pass
    assert registry.list() == []


def test_a_signal_while_a_connection_is_put_back_is_raised_and_prints_no_stack(
    registry, publish
) -> None:
    publish()
    ends = (
        "import sys, sqlalchemy.pool.base as pool, pathlib\n"
        "from bc2.registry import Registry\n"
        "def stop(*_, **__): raise KeyboardInterrupt\n"
        "registry = Registry.open(pathlib.Path(sys.argv[1]))\n"
        "pool._ConnectionFairy._reset = stop\n"
        "try: registry.list()\n"
        "except KeyboardInterrupt: print('raised')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", ends, str(registry.home)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("raised\n", "")


def test_an_index_of_another_schema_says_so(registry, publish) -> None:
    publish()
    with registry.index.writing() as connection:
        connection.execute(ix.schema.update().values(version=99))
    with pytest.raises(RunFailed, match="schema 99"):
        Registry.open(registry.home).list()


def test_a_file_that_went_away_is_not_made_anew_empty(registry, publish) -> None:
    publish()
    index = registry.index
    registry.index_file.unlink()
    with pytest.raises(RunFailed), index.reading():
        pass
    assert not registry.index_file.exists()


@pytest.mark.parametrize("url", ["nonsense", "nosuchdb://x/y", "sqlite://", "postgresql://h:x/y"])
def test_urls_that_cannot_be(tmp_path: Path, monkeypatch, url: str) -> None:
    monkeypatch.setenv("BC2_REGISTRY_URL", url)
    with pytest.raises(UsageError, match="BC2_REGISTRY_URL"):
        Registry.open(tmp_path / "home").list()


def test_an_index_by_url(tmp_path: Path, monkeypatch, publish) -> None:
    monkeypatch.setenv("BC2_REGISTRY_URL", f"sqlite:///{tmp_path}/team.sqlite")
    registry = Registry.open(tmp_path / "shared")
    artifact = publish(home=registry)
    assert Registry.open(tmp_path / "shared").list() == [artifact]
    assert (tmp_path / "team.sqlite").exists()
    assert not registry.index_file.exists()
    (tmp_path / "team.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(IntegrityError):
        registry.rebuild()


def test_the_tables_and_queries_are_good_postgresql() -> None:
    dialect = postgresql.dialect()
    for table in (ix.artifacts, ix.parents, ix.tags, ix.schema):
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
    where = [ix.artifacts.c.finished.is_(True), queries.children("0" * 64)]
    text = str(
        sa.select(ix.artifacts).where(*where).order_by(*queries.NEWEST).compile(dialect=dialect)
    )
    assert "finished IS true" in text


def take_back_the_role(path: Path) -> None:
    """Make the index that bc2 made before there were roles."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE artifacts DROP COLUMN role")
        connection.commit()


def test_an_index_from_before_roles_gains_them_and_loses_nothing(registry, publish) -> None:
    text = publish("corpus", "tiny")
    base = publish("checkpoint", "run", step=3, parents=(text,))
    registry.tag(base, "best")
    before = registry.list()
    take_back_the_role(registry.index_file)
    again = Registry.open(registry.home)
    assert again.list() == before
    assert [one.role for one in before] == ["base", None]
    assert again.newest("checkpoint", ("base",)).digest == base.digest
    chat = publish("checkpoint", "run", step=4, role="chat", home=again)
    assert again.list(roles=("chat",)) == [chat]


def test_a_bc2_from_before_roles_may_go_on_with_the_index(registry, publish) -> None:
    base = publish("checkpoint", "run", role="base")
    with registry.index.writing() as connection:
        connection.execute(ix.artifacts.update().values(role=None))
    assert registry.list(roles=("base", "chat")) == [base]
    assert registry.list(roles=("chat",)) == []


def test_many_open_an_index_from_before_roles_at_once(registry, publish) -> None:
    made = [publish("checkpoint", f"run{number}") for number in range(3)]
    take_back_the_role(registry.index_file)
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(8)
    openers = [fork.Process(target=_open_at_once, args=(registry.home, barrier)) for _ in range(8)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert [opener.exitcode for opener in openers] == [0] * 8
    assert Registry.open(registry.home).list() == made[::-1]


def _open_at_once(home: Path, barrier: Any) -> None:
    registry = Registry.open(home)
    barrier.wait()
    assert [one.role for one in registry.list()] == ["base"] * 3


def test_a_column_is_added_in_good_postgresql() -> None:
    column = CreateColumn(ix.artifacts.c.role).compile(dialect=postgresql.dialect())
    assert str(column) == "role VARCHAR(16)"
    assert ix.artifacts.c.role.nullable
    error = ix._explain(Exception("must be owner of table artifacts"), "postgresql://u@h/d")
    assert "let the owner of the tables run" in str(error)


@pytest.mark.skipif("BC2_TEST_POSTGRESQL" not in os.environ, reason="needs a PostgreSQL server")
def test_an_index_in_postgresql_gains_roles(tmp_path: Path, monkeypatch, publish) -> None:
    """BC2_TEST_POSTGRESQL: the URL of an empty database, whose tables this test makes."""
    url = os.environ["BC2_TEST_POSTGRESQL"]
    monkeypatch.setenv("BC2_REGISTRY_URL", url)
    registry = Registry.open(tmp_path / "shared")
    base = publish("checkpoint", "run", home=registry)
    registry.tag(base, "best")
    with registry.index.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE artifacts DROP COLUMN role")
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(6)
    openers = [
        fork.Process(target=_find_the_base, args=(registry.home, base.digest, barrier))
        for _ in range(6)
    ]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert [opener.exitcode for opener in openers] == [0] * 6
    chat = publish("checkpoint", "run", seed=1, role="chat", home=registry)
    assert registry.resolve("run", roles=("chat",)) == chat
    assert registry.resolve("run:best").digest == base.digest
    assert registry.list(limit=1) == [chat]
    assert registry.count() == 2


def _find_the_base(home: Path, digest: str, barrier: Any) -> None:
    barrier.wait()
    assert Registry.open(home).newest("checkpoint", ("base",)).digest == digest


def test_an_index_that_another_process_made_meanwhile_is_taken(
    registry, publish, monkeypatch
) -> None:
    """The one waits for the lock of the home, the other makes the index under it."""
    artifact = publish()
    registry.index_file.unlink()
    made = []
    plain, make = catalog.files.lock_directory, type(registry)._make_index

    def lock_after_another(path, **named):
        monkeypatch.setattr(catalog.files, "lock_directory", plain)
        assert type(registry)(registry.home).list() == [artifact]
        return plain(path, **named)

    def counted(self) -> None:
        made.append(self)
        make(self)

    monkeypatch.setattr(catalog.files, "lock_directory", lock_after_another)
    monkeypatch.setattr(type(registry), "_make_index", counted)
    late = type(registry)(registry.home)
    assert late.list() == [artifact]
    assert len(made) == 1
    assert late not in made
