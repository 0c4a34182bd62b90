from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from bc2 import files
from bc2.errors import DataError, IntegrityError, ResourceError, RunFailed
from bc2.registry import Draft, Registry, queries
from bc2.registry.manifest import FileEntry

KEY = "2" * 64


def nothing_left(registry: Registry) -> bool:
    places = [*registry.staging.glob("*"), *(registry.home / "artifacts").glob("*/*/*")]
    return not places


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (lambda path: (path / "empty").mkdir(), "nothing was written"),
        (lambda path: (path / "manifest.json").write_text("{}"), r"manifest\.json"),
        (lambda path: (path / "link").symlink_to("/etc/passwd"), "link"),
    ],
)
def test_payloads_that_cannot_be(registry, write, complaint: str) -> None:
    with registry.stage(Draft("corpus", "a", KEY)) as staged:
        write(staged.path)
        with pytest.raises(DataError, match=complaint):
            staged.publish()
    assert nothing_left(registry)


def known(data: bytes, **changes: object) -> list[FileEntry]:
    facts = {"path": "x", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return [FileEntry.model_validate({**facts, **changes})]


def test_a_known_digest_is_published_and_proved_like_any_other(registry, publish) -> None:
    with registry.stage(Draft("corpus", "tiny", KEY)) as staged:
        (staged.path / "x").write_bytes(b"abc")
        artifact = staged.publish(known=known(b"abc"))
    registry.verify(artifact)
    # What was to be written, not what is there: the disk answers for it ever after.
    with registry.stage(Draft("corpus", "other", KEY)) as staged:
        (staged.path / "x").write_bytes(b"abd")
        artifact = staged.publish(known=known(b"abc"))
    with pytest.raises(IntegrityError, match="does not match its SHA-256"):
        registry.verify(artifact)


@pytest.mark.parametrize("changes", [{"size": 4}, {"path": "y"}])
def test_a_known_file_that_is_not_there_so_is_not_published(registry, changes) -> None:
    with registry.stage(Draft("corpus", "a", KEY)) as staged:
        (staged.path / "x").write_bytes(b"abc")
        with pytest.raises(IntegrityError, match="were written"):
            staged.publish(known=known(b"abc", **changes))
    assert nothing_left(registry)


def forget(registry: Registry, digest: str) -> None:
    with registry.index.writing() as connection:
        queries.delete(connection, digest)


def test_what_a_crash_left_in_place_is_adopted(registry, publish) -> None:
    artifact = publish()
    inode = artifact.path.stat().st_ino
    forget(registry, artifact.digest)
    assert registry.list() == []
    assert publish() == artifact
    assert artifact.path.stat().st_ino == inode
    registry.verify(artifact)


def test_what_is_damaged_in_place_makes_way(registry, publish) -> None:
    artifact = publish(files={"a": b"good"})
    registry.tag(artifact, "best")
    for damage in (
        lambda: (artifact.path / "a").write_bytes(b"evil"),
        lambda: (artifact.path / "manifest.json").unlink(),
        lambda: shutil.rmtree(artifact.path),
    ):
        damage()
        with pytest.raises(IntegrityError):
            registry.verify(registry.get(artifact.digest))
        again = publish(files={"a": b"good"})
        registry.verify(again)
        assert again.digest == artifact.digest
        assert again.tags == ("best",)
    assert len(registry.list()) == 1


def test_what_is_damaged_and_in_use_stays(registry, publish) -> None:
    artifact = publish(files={"a": b"good"})
    (artifact.path / "a").write_bytes(b"evil")
    with artifact.hold(), pytest.raises(RunFailed, match="damaged, and in use"):
        publish(files={"a": b"good"})
    assert not list(registry.staging.iterdir())


def test_an_index_that_fails_leaves_nothing(registry, publish, monkeypatch) -> None:
    publish("corpus", "other")

    def fail(*_: object) -> None:
        raise RunFailed("the index failed")

    monkeypatch.setattr(queries, "insert", fail)
    with pytest.raises(RunFailed, match="the index failed"):
        publish()
    assert [artifact.name for artifact in registry.list()] == ["other"]
    assert list((registry.home / "artifacts" / "corpus" / "tiny").glob("*")) == []
    assert not list(registry.staging.iterdir())


@pytest.mark.parametrize("where", ["write_durably", "sync_tree", "make_directory", "rename"])
def test_a_full_disk_while_publishing_is_exit_6(registry, publish, monkeypatch, where) -> None:
    publish("corpus", "first")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    with registry.stage(Draft("corpus", "a", KEY)) as staged:
        (staged.path / "x").write_bytes(b"x")
        with monkeypatch.context() as patch:
            patch.setattr(*((os, "rename") if where == "rename" else (files, where)), full)
            with pytest.raises(ResourceError) as caught:
                staged.publish()
    assert caught.value.exit_code == 6
    assert list(registry.staging.iterdir()) == []
    assert [artifact.name for artifact in registry.list()] == ["first"]


def test_a_full_disk_while_writing_the_payload_is_exit_6(registry) -> None:
    with (
        pytest.raises(ResourceError),
        registry.stage(Draft("corpus", "a", KEY)),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert nothing_left(registry)


@pytest.fixture
def small_disk(tmp_path: Path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path, size: int) -> None:
    with path.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(size))


def test_a_disk_that_is_really_full(small_disk: Path, publish) -> None:
    registry = Registry.open(small_disk / "home")
    artifact = publish("corpus", "kept", home=registry, files={"a": b"1" * 100_000})
    with pytest.raises(ResourceError) as caught:
        publish("corpus", "big", home=registry, files={"a": bytes(2_000_000)})
    assert caught.value.exit_code == 6
    # Fill it to the last byte: then nothing of a publish has room, not even the index.
    for size in (4096, 1):
        with pytest.raises(OSError, match="No space left"):
            fill(small_disk / f"filler{size}", size)
    with pytest.raises(ResourceError):
        publish("corpus", "small", home=registry, files={"a": b"1"})
    for filler in small_disk.glob("filler*"):
        filler.unlink()
    assert [one.name for one in registry.list()] == ["kept"]
    assert list(registry.staging.iterdir()) == []
    assert [path.name for path in (registry.home / "artifacts").glob("*/*/*")] == [artifact.ref]
    registry.verify(artifact)
    publish("corpus", "after", home=registry, files={"a": b"1"})


@pytest.fixture
def open_place():
    """A directory that other users may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_home_without_rights_gives_one_clear_error(publish, open_place, tmp_path, mode) -> None:
    registry = Registry.open(open_place / "home")
    publish(home=registry)
    registry.home.chmod(mode)
    before = sorted(registry.home.rglob("*"))
    # Code and imports come first: another user may not be able to read them.
    script = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from bc2.errors import Bc2Error
        from bc2.registry import Draft, Registry, index, publish, manifest, payload
        import sqlalchemy.dialects.sqlite
        Registry.open(Path({str(tmp_path / "warm")!r})).index
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        registry = Registry.open(Path({str(registry.home)!r}))
        try:
            with registry.stage(Draft("corpus", "a", "{KEY}")) as staged:
                (staged.path / "x").write_bytes(b"x")
                staged.publish()
        except Bc2Error as error:
            print(type(error).__name__, error.exit_code, error)
        else:
            print("published")
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.startswith("RunFailed 1 the registry cannot be written: permission denied")
    assert "BC2_HOME" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert sorted(registry.home.rglob("*")) == before
