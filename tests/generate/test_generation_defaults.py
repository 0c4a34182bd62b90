"""Generation settings of a model: read, checked, and written as they are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_checkpoints
import pytest

from bc2.errors import DataError, IntegrityError
from bc2.generate.generation_defaults import GENERATION_FILE, GenerationDefaults
from bc2.registry import Artifact

EVERY: dict[str, Any] = {
    "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05,
    "max_new_tokens": 64,
}  # fmt: skip


def published(home: Path, content: bytes | None) -> Artifact:
    files = {} if content is None else {GENERATION_FILE: content}
    return made_checkpoints.register(home, files=files)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    every = GenerationDefaults(**EVERY, end_ids=(4, 5))
    assert every.to_bytes() == (
        b'{"end_ids":[4,5],"max_new_tokens":64,"min_p":0.05,"repetition_penalty":1.05,'
        b'"temperature":0.6,"top_k":20,"top_p":0.95}'
    )
    assert GenerationDefaults.of(published(tmp_path / "home", every.to_bytes())) == every
    assert every.sampling() == EVERY


def test_what_is_not_set_is_not_written(tmp_path: Path) -> None:
    greedy = GenerationDefaults(temperature=0.0)
    assert greedy.to_bytes() == b'{"temperature":0.0}'
    assert greedy.sampling() == {"temperature": 0.0}
    assert GenerationDefaults().to_bytes() == b"{}"
    assert GenerationDefaults.of(published(tmp_path, None)) == GenerationDefaults()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"none", "invalid json"),
        (b'{"temprature": 1}', "temprature: extra inputs"),
        (b'{"top_p": 2}', "top_p: input should be less than or equal to 1"),
        (b'{"end_ids": [1, "2"]}', "end_ids.1"),
        (b'{"max_new_tokens": 0}', "max_new_tokens"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    artifact = published(tmp_path, content)
    with pytest.raises(DataError, match=said) as info:
        GenerationDefaults.of(artifact)
    assert info.value.where == str(artifact.path / GENERATION_FILE)


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    artifact = published(tmp_path, b'{"top_k":1}')
    path = artifact.path / GENERATION_FILE
    path.chmod(0o644)
    path.write_bytes(b'{"top_k":2}')
    with pytest.raises(IntegrityError):
        GenerationDefaults.of(artifact)
