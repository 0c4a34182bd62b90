from __future__ import annotations

from pathlib import Path

import pytest

from bc2.errors import IntegrityError
from bc2.files import lock_directory
from bc2.registry import queries
from bc2.registry.lineage import trace


@pytest.fixture
def house(registry, publish):
    """Four kinds, two runs, tags, a removed artifact."""
    text = publish("corpus", "tiny")
    words = publish("tokenizer", "tiny", parents=(text,))
    shards = publish("tokens", "tiny", parents=(words, text))
    for step in (1, 2, 3):
        base = publish("checkpoint", "run", step=step, finished=step == 3, parents=(shards,))
    registry.tag(base, "best")
    registry.tag(text, "best")
    registry.tag(publish("corpus", "other"), "gone")
    registry.untag(registry.resolve("other"), "gone")
    registry.remove(registry.resolve("other"))
    return registry


def state(registry) -> tuple:
    listed = registry.list()
    lines = [trace(registry, one, down=down).as_json() for one in listed for down in (False, True)]
    return listed, lines, [registry.resolve(ref) for ref in ("run:best", "tokens/tiny", "run@2")]


def drop_index(registry) -> None:
    for path in registry.home.glob("index.sqlite*"):
        path.unlink()


def test_a_lost_index_is_rebuilt_the_same(house, capsys) -> None:
    before = state(house)
    drop_index(house)
    assert state(house) == before
    assert "rebuilt from 6 manifests" in capsys.readouterr().err
    found = house.rebuild()
    assert (len(found.artifacts), found.adopted, found.broken, found.dropped) == (6, [], [], [])
    assert state(house) == before


def test_a_lost_index_with_its_wal_left_behind(house) -> None:
    before = state(house)
    house.index_file.unlink()
    for suffix in ("-wal", "-shm"):
        house.index_file.with_name(house.index_file.name + suffix).write_bytes(b"\x37\x7f" * 9999)
    assert state(house) == before


@pytest.mark.parametrize("damage", [b"", b"not a database" * 999])
def test_a_broken_index_is_set_aside(house, damage: bytes, capsys) -> None:
    before = state(house)
    house.index_file.write_bytes(damage)
    found = house.rebuild()
    assert len(found.artifacts) == 6
    assert state(house) == before
    assert "kept as" in capsys.readouterr().err
    assert len(list(house.home.glob("index.broken-*"))) == 1


def test_a_broken_index_is_an_integrity_error(house) -> None:
    house.index_file.write_bytes(b"not a database" * 999)
    with pytest.raises(IntegrityError, match="bc2 registry rebuild"):
        house.list()


def test_what_a_crash_left_out_of_the_index_is_adopted(house) -> None:
    before = state(house)
    lost = house.resolve("run@3")
    with house.index.writing() as connection:
        queries.delete(connection, lost.digest)
        queries.drop_tag(connection, "checkpoint", "run", "best")
    assert [one.digest for one in house.rebuild().adopted] == [lost.digest]
    assert state(house) == before


def test_damage_is_reported_and_not_adopted(house) -> None:
    for ref, damage in (
        ("run@1", lambda path: (path / "data.bin").write_bytes(b"")),
        ("run@2", lambda path: (path / "manifest.json").write_bytes(b"{}")),
    ):
        damage(house.resolve(ref).path)
    drop_index(house)
    assert len(house.list()) == 4
    found = house.rebuild()
    assert len(found.artifacts) == 4
    assert len(found.broken) == 2


def test_a_registered_artifact_that_is_damaged_stays_registered(house) -> None:
    damaged = house.resolve("run@1")
    (damaged.path / "data.bin").unlink()
    assert len(house.rebuild().broken) == 1
    assert house.resolve("run@1") == damaged


def test_rows_without_files_are_dropped_aloud(house) -> None:
    import shutil

    gone = house.resolve("run@1")
    shutil.rmtree(gone.path)
    with pytest.raises(IntegrityError):
        house.verify(gone)
    assert house.resolve("run@1") == gone
    assert house.rebuild().dropped == [gone]


def test_a_tag_of_nothing_is_reported(house) -> None:
    tag = house.resolve("run").path.parent / "tags" / "lost"
    tag.write_text("0" * 64)
    (tag.parent / ".best.1.tmp").write_text("half")
    found = house.rebuild()
    assert [Path(error.where).name for error in found.broken] == ["lost"]


def test_an_artifact_in_anothers_place_is_not_taken(house) -> None:
    import shutil

    artifact = house.resolve("run@1")
    shutil.copytree(artifact.path, artifact.path.parent / ("0" * 16))
    found = house.rebuild()
    assert len(found.broken) == 1
    assert len(found.artifacts) == 6


def test_what_others_publish_or_remove_is_left_to_them(house) -> None:
    kept, absent = house.resolve("run@1"), house.resolve("run@2")
    with house.index.writing() as connection:
        queries.delete(connection, absent.digest)
    with lock_directory(kept.path), lock_directory(absent.path):
        house.rebuild()
        listed = house.list()
        assert kept in listed
        assert absent not in listed
