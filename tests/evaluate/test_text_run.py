"""The likelihood of one's own texts goes on where it was, from whatever was left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.text_run import TextEvalSettings, TextFiles, TextRun


@pytest.fixture
def run(holder: ModelHolder, tmp_path: Path) -> TextRun:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(130)))
    files = TextFiles.open(path)
    return TextRun(files, TextEvalSettings(stride=4, data=files.digest), holder)


@pytest.mark.parametrize("left", [b"", b"{", b"\xff", None])
def test_a_damaged_or_missing_part_is_measured_again(
    run: TextRun, tmp_path: Path, left: bytes | None
) -> None:
    whole = run.measure_all(tmp_path / "work").result()
    assert whole["total"]["documents"] == 130
    parts = sorted((tmp_path / "work" / "answers").glob("*.json"))
    assert len(parts) == 3
    before = [part.read_bytes() for part in parts]
    if left is None:
        parts[1].unlink()
    else:
        parts[1].write_bytes(left)
    assert run.measure_all(tmp_path / "work").result() == whole
    assert [part.read_bytes() for part in parts] == before
