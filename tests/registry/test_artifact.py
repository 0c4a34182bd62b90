from __future__ import annotations

import fcntl
import hashlib
import os

import pytest

from bc2.errors import IntegrityError, RefError
from bc2.registry import Position


def test_an_artifact_says_what_it_is(publish) -> None:
    artifact = publish("checkpoint", "run", step=3, tokens=5, files={"a/b": b"1", "c": b"2"})
    assert artifact.title == "checkpoint/run@3"
    assert artifact.ref == artifact.digest[:16]
    assert artifact.files() == ["a/b", "c"]
    assert artifact.files("a/") == ["a/b"]
    assert artifact.file("a/b").read_bytes() == b"1"
    assert artifact.position == Position(3, 5)


def test_a_file_it_does_not_have(publish) -> None:
    with pytest.raises(RefError, match=r"did you mean 'tokenizer\.model'"):
        publish(files={"tokenizer.model": b"x"}).file("tokeniser.model")


def test_the_entry_of_a_file_needs_no_file(publish) -> None:
    artifact = publish(files={"weights": b"abcdef", "other": b""})
    (artifact.path / "weights").unlink()
    entry = artifact.entry("weights")
    assert (entry.path, entry.size) == ("weights", 6)
    assert entry.sha256 == hashlib.sha256(b"abcdef").hexdigest()


@pytest.mark.parametrize("method", ["entry", "file", "reading"])
def test_every_way_to_a_file_knows_what_there_is(publish, method: str) -> None:
    artifact = publish(files={"weights": b"abcdef"})
    with pytest.raises(RefError, match=r"has no file 'weihgts'.*did you mean 'weights'"):
        getattr(artifact, method)("weihgts")


def test_reading_proves_the_file_by_the_manifest(publish) -> None:
    artifact = publish(files={"weights": b"abcdef"})
    with artifact.reading("weights") as stream:
        assert stream.read(4) == b"abcd"
    (artifact.path / "weights").write_bytes(b"abcdeg")
    with (
        pytest.raises(IntegrityError, match=r"SHA-256 \(.*weights\)"),
        artifact.reading("weights") as stream,
    ):
        stream.read(4)


def test_file_looks_at_the_bytes_on_every_call(publish) -> None:
    artifact = publish(files={"weights": b"abcdef"})
    artifact.file("weights")
    (artifact.path / "weights").write_bytes(b"abcdeg")
    with pytest.raises(IntegrityError, match="weights"):
        artifact.file("weights")


def test_hold_is_a_shared_lock_that_ends_with_its_context(publish) -> None:
    artifact = publish()
    fd = os.open(artifact.path, os.O_RDONLY)
    try:
        with artifact.hold(), artifact.hold(), pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def test_hold_of_what_is_gone(registry, publish) -> None:
    artifact = publish()
    registry.remove(artifact)
    with pytest.raises(IntegrityError, match="gone"), artifact.hold():
        pass
