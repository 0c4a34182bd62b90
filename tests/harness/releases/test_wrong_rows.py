"""What is no row of a release is refused with its file, its row and what to do: every reader."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_releases
import pytest

from bc2.errors import DataError
from bc2.harness.release import SOURCES, open_release

#: A file of each source that can be edited as text, in the made releases.
FILES = {
    "mmlu": "mmlu/data/test/anatomy_test.csv",
    "cmmlu": "cmmlu/data/test/anatomy.csv",
    "ceval": "ceval/val/law_val.csv",
    "gsm8k": "gsm8k/test.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl",
    "mbpp": "mbpp/mbpp.jsonl",
    "bbh": "bbh/snarks.json",
    "agieval": "agieval/data/v1/sat-en.jsonl",
    "jecqa": "agieval/data/v1/jec-qa-ca.jsonl",
    "gaokao": "gaokao_bench/Data/Objective_Questions/2010-2022_Biology_MCQs.json",
    "medqa": "medagents/data/medqa_5options/test.jsonl",
    "medmcqa": "medagents/data/medmcqa/test.jsonl",
}


@pytest.fixture
def release_file(tmp_path: Path) -> Callable[[str], Path]:
    """The file of a source in a made release, all of which may be changed."""

    def made(source: str) -> Path:
        made_releases.write_releases(tmp_path, [source])
        path = tmp_path / FILES[source]
        if source == "cmmlu":
            import zipfile

            archive = next(tmp_path.rglob("*.zip"))
            zipfile.ZipFile(archive).extractall(tmp_path / "cmmlu" / "data")
            archive.unlink()
        if source == "humaneval":
            packed = path.with_name(path.name + ".gz")
            path.write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
        return path

    return made


def refused(source: str, folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        open_release(source, folder)
    return caught.value


def rows_of(path: Path) -> list[Any]:
    """The rows of a file, to change one; a CSV's first is its header."""
    text = path.read_text("utf-8")
    if path.suffix == ".csv":
        return list(csv.reader(text.splitlines()))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    loaded = json.loads(text)
    rows: list[Any] = loaded.get("example") or loaded.get("examples")
    return rows


def write_rows(path: Path, rows: list[Any]) -> None:
    if path.suffix == ".csv":
        path.write_text(made_releases.csv_text(rows), "utf-8")
    elif path.suffix == ".jsonl":
        path.write_bytes(made_releases.json_lines(rows))
    else:
        key = "examples" if path.parent.name == "bbh" else "example"
        path.write_text(json.dumps({key: rows}), "utf-8")


#: Of each source: the column of the question, that of the answer, and a wrong answer.
COLUMNS: dict[str, tuple[Any, Any, Any]] = {
    "mmlu": (0, 5, "4"),
    "cmmlu": (1, 6, "E"),
    "ceval": (1, 6, "a"),
    "gsm8k": ("question", "answer", "no result"),
    "humaneval": ("prompt", "test", 3),
    "mbpp": ("text", "test_list", "assert True"),
    "bbh": ("input", "target", " "),
    "agieval": ("question", "label", "E"),
    "jecqa": ("question", "label", "F"),
    "gaokao": ("question", "answer", "A"),
    "medqa": ("question", "answer_idx", "F"),
    "medmcqa": ("question", "answer_idx", "E"),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("column", [0, 1], ids=["question", "answer"])
def test_an_empty_question_and_a_label_out_of_range(
    source: str, column: int, release_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = release_file(source)
    rows = rows_of(path)
    row = 2 if path.suffix == ".csv" else 1  # the second row that is no header
    rows[row][COLUMNS[source][column]] = " \n" if column == 0 else COLUMNS[source][2]
    write_rows(path, rows)
    error = refused(source, tmp_path)
    assert error.where == f"{path}:2"
    if column == 0:
        assert error.what.endswith("is empty")
    assert "fetch the release again" in str(error.todo)


@pytest.mark.parametrize("source", SOURCES)
def test_no_rows(source: str, release_file: Callable[[str], Path], tmp_path: Path) -> None:
    path = release_file(source)
    rows = rows_of(path)
    write_rows(path, rows[:1] if path.suffix == ".csv" else [])
    error = refused(source, tmp_path)
    assert "has no rows" in error.what
    assert error.where == str(path)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "data", [b"", b"<!DOCTYPE html>\n<p>Not found</p>\n", b"PK\x03\x04", "题\n".encode("gb18030")]
)
def test_a_file_of_another_format(
    source: str, data: bytes, release_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = release_file(source)
    path.write_bytes(data)
    error = refused(source, tmp_path)
    assert str(error.where).startswith(str(path))
    assert error.todo
    if data[:1] > b"\x7f":
        assert "not UTF-8" in error.what


@pytest.mark.parametrize("source", ["mmlu", "cmmlu", "ceval"])
def test_a_shuffled_or_foreign_header(
    source: str, release_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = release_file(source)
    rows = rows_of(path)
    shuffled = [[row[0], row[2], row[1], *row[3:]] for row in rows]
    foreign = [["x", "y"], ["1", "2"]]
    for changed in (shuffled, foreign, [row[1:] for row in rows]):
        write_rows(path, changed)
        error = refused(source, tmp_path)
        assert "the columns are not this benchmark's" in error.what
        assert error.where == str(path)
        assert f"must begin with {','.join(rows[0])}" in str(error.todo)


@pytest.mark.parametrize("source", ["mmlu", "cmmlu", "ceval"])
def test_a_row_with_another_number_of_fields(
    source: str, release_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = release_file(source)
    rows = rows_of(path)
    rows[2].append("more")
    write_rows(path, rows)
    error = refused(source, tmp_path)
    assert error.what == f"a row has {len(rows[2])} fields, and the header {len(rows[0])}"
    assert error.where == f"{path}:2"


@pytest.mark.parametrize("source", [name for name, path in FILES.items() if ".json" in path])
def test_a_row_without_a_column(
    source: str, release_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = release_file(source)
    rows = rows_of(path)
    asked = COLUMNS[source][0]
    rows[1] = {key: value for key, value in rows[1].items() if key != asked}
    write_rows(path, rows)
    error = refused(source, tmp_path)
    assert f"a row has no {asked}" in error.what
    assert error.where == f"{path}:2"
    write_rows(path, [*rows[:1], ["a list"]])
    assert "there is: a JSON list" in refused(source, tmp_path).what


def test_a_subject_without_its_shots(release_file: Callable[[str], Path], tmp_path: Path) -> None:
    release_file("mmlu")
    (tmp_path / "mmlu/data/dev/virology_dev.csv").unlink()
    assert "virology: dev has no file" in refused("mmlu", tmp_path).what


@pytest.mark.parametrize("source", ["ceval", "gaokao", "medqa", "medmcqa"])
def test_too_few_rows_to_take_shots_from(
    source: str, release_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = release_file(source)
    rows = rows_of(path)
    write_rows(path, rows[:6] if path.suffix == ".csv" else rows[:5])
    assert "5 rows are too few: 5 become shots" in refused(source, tmp_path).what


@pytest.mark.parametrize("source", [name for name, path in FILES.items() if ".json" in path])
def test_half_a_surrogate_pair(
    source: str, release_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = release_file(source)
    rows = rows_of(path)
    rows[1][COLUMNS[source][0]] = "Half \ud83d?"
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        write_rows(path, rows)
    assert refused(source, tmp_path).where == f"{path}:2"


def test_labels_are_no_truth_values(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in ("dev", "test"):
        (tmp_path / "virology").mkdir(exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist([{"question": "?", "choices": ["a", "b"], "answer": True}]),
            tmp_path / f"virology/{split}-00000-of-00001.parquet",
        )
    assert "the answer is 'True', not one of 0, 1" in refused("mmlu", tmp_path).what
