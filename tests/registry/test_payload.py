from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import DataError, IntegrityError, RunFailed
from bc2.registry import payload
from bc2.registry.manifest import FileEntry


def test_a_flipped_byte_anywhere_is_found_and_named(registry, publish) -> None:
    rng = random.Random(1)
    files = {"a.bin": rng.randbytes(300), "deep/er/b.bin": rng.randbytes(70), "empty": b""}
    artifact = publish(files=files)
    registry.verify(artifact)
    for name, data in files.items():
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 1 << rng.randrange(8)
            (artifact.path / name).write_bytes(changed)
            with pytest.raises(IntegrityError, match=name):
                registry.verify(artifact)
            with pytest.raises(IntegrityError, match=name):
                artifact.file(name)
        (artifact.path / name).write_bytes(data)
    registry.verify(artifact)


def test_a_flipped_byte_beyond_the_first_chunk_is_found(registry, publish) -> None:
    data = bytearray(3 * (1 << 20) + 5)
    artifact = publish(files={"big": bytes(data)})
    data[-1] = 1
    (artifact.path / "big").write_bytes(data)
    with pytest.raises(IntegrityError, match="big"):
        registry.verify(artifact)


def test_missing_longer_linked_and_added_files_are_found(registry, publish) -> None:
    artifact = publish(files={"a": b"1234", "b/c": b"5"})
    path = artifact.path / "a"
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        registry.verify(artifact)
    path.symlink_to(artifact.path / "b" / "c")
    with pytest.raises(IntegrityError, match="link"):
        artifact.file("a")
    path.unlink()
    path.write_bytes(b"12345")
    with pytest.raises(IntegrityError, match="5 bytes"):
        artifact.file("a")
    path.write_bytes(b"1234")
    (artifact.path / "b" / "d").write_bytes(b"")
    with pytest.raises(IntegrityError, match="not in the manifest"):
        registry.verify(artifact)


def test_a_payload_holds_plain_files_only(tmp_path: Path) -> None:
    for name, make in (
        ("link", lambda path: path.symlink_to("elsewhere")),
        ("pipe", lambda path: os.mkfifo(path)),
    ):
        root = tmp_path / name
        (root / "sub").mkdir(parents=True)
        make(root / "sub" / name)
        with pytest.raises(DataError, match=name):
            payload.paths(root)


def test_file_names_must_be_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff")).write_bytes(b"")
    with pytest.raises(DataError, match="UTF-8"):
        payload.paths(tmp_path)


def test_odd_file_names_survive(registry, publish) -> None:
    names = {
        "a b",
        "四/五",
        'q"uote',
        "new\nline",
        "back\\slash",
        "manifest/x",
        "sub/manifest.json",
    }
    artifact = publish(files={name: name.encode() for name in names})
    registry.verify(artifact)
    assert set(artifact.files()) == names
    assert all(artifact.file(name).read_text() == name for name in names)


def entry(path: str, data: bytes, size: int | None = None) -> FileEntry:
    size = len(data) if size is None else size
    return FileEntry(path=path, size=size, sha256=hashlib.sha256(data).hexdigest())


def test_files_whose_digests_are_known_are_not_read(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "deep").mkdir()
    written = {"a": b"1234", "deep/b": b"5"}
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    expected = tuple(entry(name, data) for name, data in written.items())
    assert payload.measure(tmp_path) == expected
    read: list[Path] = []
    monkeypatch.setattr(payload, "sha256_file", lambda path: read.append(path) or "0" * 64)
    assert payload.measure(tmp_path, expected) == expected
    assert read == []
    first, second = payload.measure(tmp_path, expected[1:])
    assert (first.sha256, second) == ("0" * 64, expected[1])
    assert read == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("path", "size", "complaint"),
    [
        ("a", 5, "has 4 bytes, and 5 bytes were written"),
        ("a", 3, "has 4 bytes, and 3 bytes were written"),
        ("b", 4, "is missing, and 4 bytes were written"),
        ("b", 0, "is missing, and 0 bytes were written"),
        ("c", 0, "is missing, and 0 bytes were written"),
    ],
)
def test_a_known_file_has_the_size_that_was_written(tmp_path, path, size, complaint) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    (tmp_path / "c").mkdir()
    with pytest.raises(IntegrityError, match=complaint) as caught:
        payload.measure(tmp_path, [entry(path, b"", size)])
    assert caught.value.where == str(tmp_path / path)


# -- files that are read once -----------------------------------------------------------------


def entry_of(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(path=path.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("sizes", [[], [0], [1, 2], [1 << 20], [3 << 20], [(3 << 20) + 5, 7]])
def test_reading_gives_the_bytes_and_digests_the_rest(tmp_path: Path, sizes: list[int]) -> None:
    path = tmp_path / "file"
    data = random.Random(2).randbytes((3 << 20) + 5)
    path.write_bytes(data)
    with payload.reading(tmp_path, entry_of(path)) as stream:
        found = [stream.read(size) for size in sizes]
    assert b"".join(found) == data[: sum(sizes)]


def test_a_flipped_byte_is_found_whether_it_was_read_or_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = random.Random(3).randbytes(100)
    path.write_bytes(data)
    entry = entry_of(path)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        for size in (0, at, at + 1, 100, 200):
            with (
                pytest.raises(IntegrityError, match="SHA-256") as caught,
                payload.reading(tmp_path, entry) as stream,
            ):
                stream.read(size)
            assert caught.value.where == str(path)


def test_a_file_of_another_size_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    entry = entry_of(path)
    for data, message in ((b"ab", "2 bytes"), (b"abcd", "4 bytes"), (None, "missing")):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(IntegrityError, match=message), payload.reading(tmp_path, entry):
            pytest.fail("opened")


def test_what_changes_while_it_is_read_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (bytes(9), bytes(11), bytes(9) + b"x"):
        path.write_bytes(bytes(10))
        entry = entry_of(path)
        with pytest.raises(IntegrityError, match="SHA-256"), payload.reading(tmp_path, entry) as it:
            change_after(it.read(3), path, data)


def change_after(read: bytes, path: Path, data: bytes) -> None:
    assert read == bytes(3)
    path.write_bytes(data)


@pytest.mark.parametrize("intact", [True, False])
def test_no_sense_in_the_bytes_is_the_files_error_if_it_is_broken(
    tmp_path: Path, intact: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    entry = entry_of(path)
    path.write_bytes(b"abc" if intact else b"abd")
    with (
        pytest.raises(IntegrityError, match="no sense" if intact else "SHA-256"),
        payload.reading(tmp_path, entry),
    ):
        raise IntegrityError("no sense")


def test_other_errors_of_the_reader_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    entry = entry_of(path)
    path.write_bytes(b"abd")
    for error in (MemoryError(), OSError(28, "No space left on device")):
        with pytest.raises(type(error)) as caught, payload.reading(tmp_path, entry):
            raise error
        assert caught.value is error


def test_a_file_that_the_system_will_not_read_is_an_error() -> None:
    raw: Any = Broken()
    with pytest.raises(RunFailed, match="input/output error while reading an artifact"):
        payload.DigestingReader(raw).read(1)


class Broken:
    def readinto(self, buffer: object) -> int:
        raise OSError(5, "Input/output error")
