from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bc2.errors import DataError, IntegrityError, ResourceError, UsageError
from bc2.registry import Registry, importing
from bc2.registry.importing import import_artifact, import_directory
from bc2.registry.lineage import trace


@pytest.fixture
def other(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "other")


def test_an_artifact_of_another_registry_stays_itself(registry, other, publish) -> None:
    text = publish("corpus", "a", home=other)
    shards = publish("tokens", "b", home=other, parents=(text,))
    taken = import_artifact(registry, shards.path)
    assert taken.digest == shards.digest
    assert taken.manifest == shards.manifest
    assert taken.path.is_relative_to(registry.home)
    registry.verify(taken)
    assert registry.parents(taken) == []
    assert trace(registry, taken).nodes[text.digest] is None
    assert "not here" in trace(registry, taken).as_dot()
    import_artifact(registry, text.path)
    assert [parent.digest for parent in registry.parents(taken)] == [text.digest]
    child = publish("checkpoint", "c", parents=(taken,))
    assert registry.parents(child) == [taken]
    assert len(registry.rebuild().artifacts) == 3


def test_importing_twice_is_importing_once(registry, other, publish) -> None:
    source = publish(home=other)
    assert import_artifact(registry, source.path) == import_artifact(registry, source.path)
    assert list(registry.staging.iterdir()) == []


def test_a_good_copy_heals_a_damaged_one(registry, other, publish) -> None:
    mine, theirs = publish(), publish(home=other)
    (mine.path / "data.bin").write_bytes(b"x")
    import_artifact(registry, theirs.path)
    registry.verify(mine)


def test_a_damaged_copy_is_not_taken(registry, other, publish) -> None:
    source = publish(home=other)
    (source.path / "data.bin").write_bytes(b"corpus tiny 0 none")
    with pytest.raises(IntegrityError, match=r"data\.bin"):
        import_artifact(registry, source.path)
    assert registry.list() == []
    assert list(registry.staging.iterdir()) == []


def test_a_plain_directory(registry, tmp_path: Path) -> None:
    source = tmp_path / "plain"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "x").write_bytes(b"x")
    artifact = import_directory(registry, source, "corpus", "mine")
    assert artifact.files() == ["sub/x"]
    assert artifact.parents == ()
    assert artifact.manifest.facts == {"imported_from": str(source)}
    assert import_directory(registry, source, "corpus", "mine") == artifact
    (source / "sub" / "x").write_bytes(b"y")
    assert import_directory(registry, source, "corpus", "mine").key != artifact.key


def test_what_cannot_be_imported(registry, publish, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        import_directory(registry, tmp_path / "none", "corpus", "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no files"):
        import_directory(registry, tmp_path / "empty", "corpus", "a")
    with pytest.raises(UsageError, match="artifact already"):
        import_directory(registry, publish().path, "corpus", "a")
    with pytest.raises(IntegrityError):
        import_artifact(registry, tmp_path / "empty")


def test_errors_name_the_path_that_was_given(registry, other, publish) -> None:
    source = publish(home=other).path
    changed = b"corpus tiny 0 none"
    changes = {
        "a file has 1 bytes": (source / "data.bin", lambda path: path.write_bytes(b"x")),
        "does not match": (
            source / "data.bin",
            lambda path: path.write_bytes(changed),
        ),
        "is missing": (source / "sub" / "more", lambda path: path.unlink()),
        "not in the manifest": (source / "extra", lambda path: path.write_bytes(b"")),
        "a manifest is not": (source / "manifest.json", lambda path: path.write_bytes(b"{}")),
    }
    kept = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    for what, (path, change) in changes.items():
        change(path)
        with pytest.raises(IntegrityError, match=what) as caught:
            import_artifact(registry, source)
        assert caught.value.where == str(path)
        assert "remove what is too much, or take a good copy" in (caught.value.todo or "")
        (source / "extra").unlink(missing_ok=True)
        for saved, data in kept.items():
            saved.write_bytes(data)
    assert import_artifact(registry, source).path.is_dir()


def test_a_plain_directory_in_error_is_named_too(registry, tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "plain"
    source.mkdir()
    with pytest.raises(DataError, match="no files") as caught:
        import_directory(registry, source, "corpus", "mine")
    assert caught.value.where == str(source)
    (source / "link").symlink_to("nothing")
    with pytest.raises(DataError, match="plain files") as caught:
        import_directory(registry, source, "corpus", "mine")
    assert caught.value.where == repr(str(source / "link"))
    (source / "link").unlink()
    (source / "data").write_bytes(b"data")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source / "data"))

    monkeypatch.setattr(importing.shutil, "copyfile", full)
    with pytest.raises(ResourceError) as caught_full:
        import_directory(registry, source, "corpus", "mine")
    assert caught_full.value.where == str(registry.staging)
