"""Files that were found intact: which count as unchanged, and what becomes of what is kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bc2.errors import IntegrityError
from bc2.registry import Artifact, Registry, gc, verified
from bc2.registry.verified import VerifiedFiles

Publish = Callable[..., Artifact]
FILES = {"a.bin": b"a" * 3000, "sub/b.bin": b"b" * 2000}


@pytest.fixture
def tokens(publish: Publish) -> Artifact:
    return publish("tokens", files=FILES)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file was written long ago: nobody can set a ctime."""
    monkeypatch.setattr(verified, "_SETTLED_NS", -(10**18))


def of(registry: Registry, artifact: Artifact) -> VerifiedFiles:
    return VerifiedFiles(registry.home, artifact.digest)


def check_all(registry: Registry, artifact: Artifact) -> VerifiedFiles:
    """Read all files, and keep what may be kept."""
    notes = of(registry, artifact)
    for entry in artifact.manifest.files:
        notes.check(artifact.path, entry, lambda count: None)
    notes.keep(notes.found)
    return notes


def unchanged(registry: Registry, artifact: Artifact) -> set[str]:
    return of(registry, artifact).unchanged(artifact.path, artifact.manifest.files)


@pytest.mark.usefixtures("settled")
def test_what_was_read_and_has_not_changed_is_known(registry: Registry, tokens: Artifact) -> None:
    assert unchanged(registry, tokens) == set()
    check_all(registry, tokens)
    assert unchanged(registry, tokens) == set(FILES)


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def rewrite_with_its_times(path: Path) -> None:
    found = path.stat()
    rewrite(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def replace_with_its_times(path: Path) -> None:
    aside = path.with_name("aside")
    shutil.copy2(path, aside)
    os.replace(aside, path)


def link(path: Path) -> None:
    moved = path.rename(path.parents[1] / "moved")
    path.symlink_to(moved)


@pytest.mark.parametrize(
    "change",
    [
        os.utime, rewrite, rewrite_with_its_times, replace_with_its_times, link, os.unlink,
        lambda path: os.truncate(path, 10), lambda path: os.chmod(path, 0o600),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("settled")
def test_what_was_changed_in_any_way_is_not(
    registry: Registry, tokens: Artifact, change: Callable[[Path], None]
) -> None:
    check_all(registry, tokens)
    change(tokens.path / "a.bin")
    assert unchanged(registry, tokens) == {"sub/b.bin"}


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_while_it_is_read_is_not_kept(
    registry: Registry, tokens: Artifact
) -> None:
    notes, entry = of(registry, tokens), tokens.entry("a.bin")
    notes.check(tokens.path, entry, lambda count: os.utime(tokens.path / "a.bin"))
    assert notes.found == {}


@pytest.mark.usefixtures("settled")
def test_a_damaged_file_is_named_and_not_kept(registry: Registry, tokens: Artifact) -> None:
    (tokens.path / "a.bin").write_bytes(b"b" * 3000)
    notes = of(registry, tokens)
    with pytest.raises(IntegrityError, match="SHA-256") as caught:
        notes.check(tokens.path, tokens.entry("a.bin"), lambda count: None)
    assert str(caught.value.where).endswith("a.bin")
    assert notes.found == {}


def test_a_file_that_was_just_written_is_read_again(registry: Registry, tokens: Artifact) -> None:
    """A second change in the same tick of the clock would look like the first."""
    assert check_all(registry, tokens).found == {}
    future = time.time_ns() + 3600 * 10**9
    os.utime(tokens.path / "a.bin", ns=(future, future))
    time.sleep(verified._SETTLED_NS / 1e9 + 0.2)
    os.utime(tokens.path / "a.bin", ns=(future, future))
    assert set(check_all(registry, tokens).found) == {"sub/b.bin"}
    assert unchanged(registry, tokens) == {"sub/b.bin"}


def test_a_file_system_whose_clock_is_behind_decides_what_was_just_written(
    registry: Registry, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_SETTLED_NS", -(30 * 10**9))
    behind = time.time_ns() - 60 * 10**9
    monkeypatch.setattr(VerifiedFiles, "_file_clock", lambda notes: behind)
    assert check_all(registry, tokens).found == {}
    monkeypatch.setattr(VerifiedFiles, "_file_clock", lambda notes: time.time_ns())
    assert set(check_all(registry, tokens).found) == set(FILES)


def part(registry: Registry, artifact: Artifact) -> Path:
    (found,) = (registry.home / "verified" / artifact.digest).iterdir()
    return found


@pytest.mark.usefixtures("settled")
def test_a_damaged_part_is_nothing_and_goes_at_the_next_start(
    registry: Registry, tokens: Artifact
) -> None:
    check_all(registry, tokens)
    path = part(registry, tokens)
    whole = path.read_bytes()
    content = json.loads(whole)
    inode = str(content["files"][0][4]).encode()
    other = {**content, "version": 2}
    damaged = [
        *(whole[:length] for length in range(0, len(whole), 7)),
        whole.replace(inode, str(int(inode) + 1).encode(), 1),
        json.dumps(other).encode(), b"[]", b"\0" * 400, b"[" * 100_000, b'{"version": 1}',
    ]  # fmt: skip
    for bytes_there in damaged:
        path.write_bytes(bytes_there)
        assert unchanged(registry, tokens) == set(), bytes_there
    check_all(registry, tokens)
    assert part(registry, tokens) != path
    assert unchanged(registry, tokens) == set(FILES)


@pytest.mark.usefixtures("settled")
def test_parts_of_several_processes_add_up_and_become_one(
    registry: Registry, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_SAVE_S", 0.0)
    first, second = of(registry, tokens), of(registry, tokens)
    first.check(tokens.path, tokens.entry("a.bin"), lambda count: None)
    second.check(tokens.path, tokens.entry("sub/b.bin"), lambda count: None)
    assert unchanged(registry, tokens) == set(FILES), "as they go, should both be killed now"
    first.keep({**first.found, **second.found})
    part(registry, tokens)
    assert unchanged(registry, tokens) == set(FILES)


@pytest.mark.usefixtures("settled")
def test_many_that_keep_at_once_lose_nothing(registry: Registry, publish: Publish) -> None:
    tokens = publish("tokens", files={f"{n}.bin": b"x" * n for n in range(12)})
    begin = threading.Barrier(12)

    def one(name: str) -> None:
        notes = of(registry, tokens)
        notes.check(tokens.path, tokens.entry(name), lambda count: None)
        begin.wait(20)
        notes.keep(notes.found)

    threads = [threading.Thread(target=one, args=(name,)) for name in tokens.files()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert unchanged(registry, tokens) == set(tokens.files())


@pytest.mark.usefixtures("settled")
def test_a_home_that_cannot_be_written_is_read_and_says_so_once(
    registry: Registry, tokens: Artifact, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(verified, "make_directory", refuse)
    monkeypatch.setattr("bc2.files._warned", set())
    for _ in range(2):
        check_all(registry, tokens)
    assert unchanged(registry, tokens) == set()
    said = capsys.readouterr().err
    assert said.count("read-only file system") == 1
    assert not (registry.home / "verified").exists()


@pytest.mark.usefixtures("settled")
def test_verify_reads_all_and_what_it_finds_damaged_is_read_at_the_next_start(
    registry: Registry, tokens: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_all(registry, tokens)
    registry.verify(tokens)
    assert unchanged(registry, tokens) == set(FILES)
    # Bit rot: nothing that the file system says of the file has changed.
    monkeypatch.setattr(verified, "_look", lambda path: verified.FileIdentity(0, 0, 0, 0))
    check_all(registry, tokens)
    (tokens.path / "a.bin").write_bytes(b"b" * 3000)
    assert unchanged(registry, tokens) == set(FILES)
    with pytest.raises(IntegrityError, match="SHA-256"):
        registry.verify(tokens)
    assert unchanged(registry, tokens) == set()


@pytest.mark.usefixtures("settled")
def test_what_is_kept_goes_with_its_artifact(registry: Registry, publish: Publish) -> None:
    one, other = publish("tokens", "one"), publish("tokens", "other")
    for each in (one, other):
        check_all(registry, each)
    registry.remove(one)
    assert [path.name for path in (registry.home / "verified").iterdir()] == [other.digest]
    assert gc.plan(registry) == []
    # By another hand: the files are gone, and the index is made again.
    shutil.rmtree(other.path)
    registry.rebuild()
    (doomed,) = gc.plan(registry)
    assert doomed.path == registry.home / "verified" / other.digest
    assert doomed.artifact is None
    done = gc.carry_out([doomed])
    assert not done.failed
    assert not doomed.path.exists()
    assert gc.plan(registry) == []
