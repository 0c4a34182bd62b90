from __future__ import annotations

import fcntl
import hashlib
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.errors import IntegrityError, RefError, UsageError
from bc2.registry import Draft, Position, stage_key
from bc2.registry.artifact import check_name

KEY = "0" * 64


def test_stage_key_is_the_digest_of_its_canonical_json() -> None:
    spelled = '{"kind":"corpus","parents":["p","q"],"settings":{"a":1,"b":"é"},"version":3}'
    expected = hashlib.sha256(spelled.encode()).hexdigest()
    assert stage_key("corpus", 3, {"b": "é", "a": 1}, ["p", "q"]) == expected


def test_stage_key_depends_on_everything_that_affects_results() -> None:
    keys = {
        stage_key("corpus", 1, {"a": 1}, ["p", "q"]),
        stage_key("tokens", 1, {"a": 1}, ["p", "q"]),
        stage_key("corpus", 2, {"a": 1}, ["p", "q"]),
        stage_key("corpus", 1, {"a": 2}, ["p", "q"]),
        stage_key("corpus", 1, {"a": 1}, ["q", "p"]),
        stage_key("corpus", 1, {"a": 1}, ["p"]),
    }
    assert len(keys) == 6


@given(st.text(max_size=20))
def test_a_name_is_taken_exactly_when_it_fits_the_grammar(name: str) -> None:
    fits = re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", name)
    digest_like = re.match(r"^[0-9a-f]{16,}\Z", name)
    if fits and not digest_like:
        assert check_name(name) == name
    else:
        with pytest.raises(UsageError):
            check_name(name)


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "a b", "a\n", "x" * 201, "ab" * 8])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError):
        Draft("corpus", name, KEY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "corpse"},
        {"key": "abc"},
        {"key": "G" * 64},
        {"parents": ("abc",)},
        {"position": Position(-1, 0)},
        {"facts": {"loss": float("nan")}},
        {"facts": {"path": object()}},
        {"recipe": {"text": "\ud800"}},
    ],
)
def test_drafts_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Draft(**{"kind": "corpus", "name": "a", "key": KEY, **wrong})


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
