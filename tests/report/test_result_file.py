import json
from pathlib import Path

import pytest

from bc2.errors import DataError, UsageError
from bc2.report.result_file import ResultFile


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def fail_after(results, *rows):
    with results:
        for row in rows:
            results.write(row)
        raise DataError("x")


def test_the_name_is_there_once_all_is_written(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("old\n")
    with ResultFile(path) as results:
        for number in range(3):
            results.write({"index": number, "text": "模\u2028"})
            assert len(lines(results.partial)) == number + 1  # at once
        assert path.read_text() == "old\n"
    assert [row["index"] for row in lines(path)] == [0, 1, 2]
    assert not results.partial.exists()


def test_an_error_leaves_the_part_under_its_name(tmp_path):
    results = ResultFile(tmp_path / "r.jsonl")
    with pytest.raises(DataError):
        fail_after(results, 1)
    assert lines(tmp_path / "r.jsonl.partial") == [1]
    assert not (tmp_path / "r.jsonl").exists()
    with pytest.raises(UsageError, match="an earlier run left"):
        ResultFile(tmp_path / "r.jsonl")


def test_an_error_before_the_first_result_leaves_nothing(tmp_path):
    with pytest.raises(DataError):
        fail_after(ResultFile(tmp_path / "r.jsonl"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [("no/r.jsonl", "no such directory"), (".", "not a file"), ("r.jsonl.gz", "not compressed")],
)
def test_where_nothing_can_be_written(tmp_path, name, said):
    with pytest.raises(UsageError, match=said):
        ResultFile(tmp_path / name)


def test_the_working_directory_is_no_file():
    with pytest.raises(UsageError, match="not a file"):
        ResultFile(Path("."))
