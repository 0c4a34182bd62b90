from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from bc2.errors import IntegrityError, RunFailed, UsageError
from bc2.registry import Registry
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
            ix.delete(connection, artifact.digest)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert registry.list() == [artifact]


def test_writers_exclude_each_other_and_readers_do_not_wait(registry, publish, monkeypatch) -> None:
    artifact = publish()
    monkeypatch.setattr(ix, "BUSY_S", 0.2)
    with registry.index.writing() as connection:
        ix.delete(connection, artifact.digest)
        assert registry.list() == [artifact]
        with pytest.raises(RunFailed, match="in use"), registry.index.writing():
            pass
    assert registry.list() == []


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
    where = [ix.artifacts.c.finished.is_(True), ix.children("0" * 64)]
    text = str(sa.select(ix.artifacts).where(*where).order_by(*ix.NEWEST).compile(dialect=dialect))
    assert "finished IS true" in text
