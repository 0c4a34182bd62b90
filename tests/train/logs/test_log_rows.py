"""Reading the logs of a run: whole, as they grow, and where a disk left them torn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bc2.train.logs.log_rows import METRICS, LogFollower, last_row, read_rows


def test_lines_that_are_no_rows_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a disk may hold after a loss of power, and an older version's torn line."""
    path = tmp_path / METRICS
    path.write_bytes(b'{"step": 1}\n' + bytes(8) + b'\n{"st{"step": 2}\n[3]\n{"step": 4}\n')
    assert list(read_rows(path)) == [{"step": 1}, {"step": 4}]
    err = capsys.readouterr().err
    assert [f"{METRICS}:{line} is no row" in err for line in (1, 2, 3, 4, 5)] == [
        False, True, True, True, False,
    ]  # fmt: skip


def test_the_last_row_of_an_event() -> None:
    content = b'{"event": "eval", "step": 0}\n{"event": "eval", "step": 8}\n{"event": "step"}\n'
    assert last_row(content, "eval") == {"event": "eval", "step": 8}
    assert last_row(content, "sample") is None
    assert last_row(b"", "eval") is None


def test_a_follower_reads_each_row_once_and_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    follower = LogFollower(path)
    assert not follower.is_new()
    assert list(follower.rows()) == []
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    assert follower.is_new()
    assert [row["a"] for row in follower.rows()] == [1, 2]
    assert not follower.is_new()
    assert list(follower.rows()) == []
    with path.open("ab") as stream:
        stream.write(': 3}\n{"a": "x\u2028y"}\n'.encode())
    assert [row["a"] for row in follower.rows()] == [3, "x\u2028y"]
    follower.close()


def test_a_follower_begins_again_when_the_file_is_another(tmp_path: Path) -> None:
    path, aside = tmp_path / "log.jsonl", tmp_path / "aside"
    path.write_text('{"a": 1}\n')
    follower = LogFollower(path)
    assert follower.is_new()
    assert [row["a"] for row in follower.rows()] == [1]
    for value in (2, 3):
        # Removed and made anew, a file often gets the inode of the one before.
        path.unlink()
        aside.write_text(json.dumps({"a": value}) + "\n")
        aside.rename(path)
        assert follower.is_new()
        assert [row["a"] for row in follower.rows()] == [value]
    follower.close()
