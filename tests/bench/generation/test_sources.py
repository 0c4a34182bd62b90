"""Prompts and questions from files, and what is said of files that are not as they should be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bc2.bench.generation.sources import read_mmlu, read_prompts
from bc2.errors import DataError

ROWS = [
    {"prompt": "Say yes."},
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Sing.", "input": ""},
]
TEXTS = ["Say yes.", "Add.\n1 and 2", "Sing."]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_prompts_of_both_layouts_are_read(tmp_path: Path, name: str) -> None:
    text = "\n\n".join(json.dumps(row) for row in ROWS).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert read_prompts(path, 3) == TEXTS
    assert read_prompts(path, 2) == TEXTS[:2]
    with pytest.raises(DataError, match="has 3 prompts, and 4 are needed"):
        read_prompts(path, 4)


@pytest.mark.parametrize(
    ("line", "what"),
    [("no", "not JSON"), ("[1]", "no prompt"), ('{"text": "x"}', "no prompt"),
     ('{"prompt": ""}', "no prompt"), ('{"input": "x"}', "no prompt")],
)  # fmt: skip
def test_a_line_without_a_prompt_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line)
    with pytest.raises(DataError, match=what) as caught:
        read_prompts(path, 2)
    assert caught.value.where == f"{path}:2"


def test_a_file_that_is_not_there_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl", 1)


def write_mmlu(folder: Path, row: str = "Which?,a,b,c,d,2") -> Path:
    for split, rows in (("dev", ["Two?,1,2,3,4,1"] * 2), ("test", [row, "How?,e,f,g,h,0"])):
        (folder / split).mkdir()
        text = "\n".join(["question,choice0,choice1,choice2,choice3,answer", *rows])
        (folder / split / f"abstract_art_{split}.csv").write_text(text)
    return folder


def test_questions_have_the_published_layout(tmp_path: Path) -> None:
    (subject,) = read_mmlu(write_mmlu(tmp_path), 1, 9)
    assert subject.header == (
        "The following are multiple choice questions (with answers) about abstract art.\n\n"
    )
    assert subject.examples == ["Two?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"] * 2
    assert subject.questions[0] == "Which?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert len(subject.questions) == 2
    assert len(read_mmlu(tmp_path, 1, 1)[0].questions) == 1


@pytest.mark.parametrize("row", ["Which?,a,b,c,2", "Which?,a,b,c,d,4", "Which?,a,b,c,d,C"])
def test_a_row_of_another_table_is_named(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match="number of the right one") as caught:
        read_mmlu(write_mmlu(tmp_path, row), 1, 9)
    assert caught.value.where == f"{tmp_path / 'test' / 'abstract_art_test.csv'}, row 2"


def test_missing_subjects_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 subjects, and 1 are needed"):
        read_mmlu(tmp_path, 1, 1)
    write_mmlu(tmp_path)
    (tmp_path / "test" / "abstract_art_test.csv").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_mmlu(tmp_path, 1, 1)
