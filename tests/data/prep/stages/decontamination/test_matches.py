"""Matches with benchmarks are read as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bc2.data.prep.stages.decontamination.matches import MATCHES, BenchmarkMatch, read_matches
from bc2.errors import DataError, ResourceError


def row(number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "file": "a.jsonl", "row": number, "source": "web", "lang": "en", "benchmark": "quiz",
        "item": f"q.jsonl:{number}", "how": "text", "words": 2, "text": "before two words after",
        "shared": [7, 16], "benchmark_text": "Two words?", "done": "dropped", **more,
    }  # fmt: skip


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "contamination.jsonl"
    rows = [row(1), row(2, lang=None, text="长城" * 9, shared=[2, 4], later="version")]
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), "utf-8")
    one, two = read_matches(path)
    assert one.pieces() == ("before ", "two words", " after")
    assert two.pieces()[1] == "长城"
    assert one.document == "web a.jsonl:1"
    path.write_bytes(b"")
    assert list(read_matches(path)) == []


@pytest.mark.parametrize("line", ["", "[]", "{", json.dumps({**row(), "row": "x"}), "\xff"])
def test_what_is_no_match_is_told_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "contamination.jsonl"
    path.write_bytes(f"{json.dumps(row())}\n{line}\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a match") as caught:
        list(read_matches(path))
    assert caught.value.where == f"{path}:2"
    with pytest.raises((DataError, ResourceError)):
        list(read_matches(tmp_path / "none"))


def test_the_columns_of_a_part_hold_every_field_in_order() -> None:
    assert MATCHES.names == list(BenchmarkMatch.model_fields)
    matches = [BenchmarkMatch(**row(1)), BenchmarkMatch(**row(2, lang=None))]
    table = pa.Table.from_pylist([match.model_dump() for match in matches], schema=MATCHES)
    assert [BenchmarkMatch(**found) for found in table.to_pylist()] == matches
