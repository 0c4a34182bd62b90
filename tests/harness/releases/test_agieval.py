"""AGIEval: single choice of four options; shots of the release, then the first rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_releases
import pytest

from bc2.errors import DataError
from bc2.harness.release import open_release
from bc2.harness.releases import agieval

OPTIONS = ["(A)1", "(B)2", "(C)3", "(D)4"]


def row(number: int, label: Any = "A", options: list[str] = OPTIONS) -> dict[str, Any]:
    return {
        "passage": None, "question": f"Question {number}?", "options": options, "label": label,
        "answer": None, "other": None,
    }  # fmt: skip


def release(folder: Path, rows: list[dict[str, Any]], shots: list[str] | None) -> None:
    data = folder / "AGIEval" / "data" / "v1"
    data.mkdir(parents=True)
    (data / "sat-math.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    if shots is not None:
        table = [["", "sat-math"]]
        for number, shot in enumerate(shots, 1):
            table += [[f"sample {number}", shot], [f"explanation {number}", "{'a': 1}"]]
        (data.parent / "few_shot_prompts.csv").write_text(made_releases.csv_text(table), "utf-8")


def questions(folder: Path) -> tuple[list[str], list[str], tuple[str, ...]]:
    found = open_release("agieval", folder)
    splits = found.datasets["bc2/agieval", "sat-math"]
    dev, test = ([one["question"] for one in splits[split]] for split in ("dev", "test"))
    return dev, test, found.differences


def test_rows_with_several_right_answers_are_left_out(tmp_path: Path) -> None:
    labels = ["A", "AC", "A C", ["B"], ["B", "D"], ["A", "。"], [], "D"]
    release(tmp_path, [row(number, label) for number, label in enumerate(labels)], None)
    with pytest.raises(DataError, match="4 rows are too few"):
        open_release("agieval", tmp_path)
    labels += ["A", "B"]
    path = tmp_path / "AGIEval/data/v1/sat-math.jsonl"
    rows = [row(number, label) for number, label in enumerate(labels)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
    dev, test, said = questions(tmp_path)
    assert dev == [f"Question {number}?" for number in (0, 3, 5, 7, 8)]
    assert test == ["Question 9?"]
    assert said[0] == "rows without exactly one right answer are left out: sat-math 4 of 10"
    assert "no shots of its own: the first 5 rows of each file" in said[1]
    found = open_release("agieval", tmp_path).datasets["bc2/agieval", "sat-math"]
    assert [one["label"] for one in found["dev"]] == ["A", "B", "A", "D", "A"]


def test_shots_of_the_release_come_first(tmp_path: Path) -> None:
    in_one = ["A. one\tB. two\r\nC. three  D. four\r"]
    shots = [
        str(row(100)),
        str(row(101, ["A", "B"])),  # several right
        str(row(102, "C", in_one)),
        str(row(103, "B", OPTIONS[:3])),  # three options
        "",
    ]
    release(tmp_path, [row(number) for number in range(5)], shots)
    dev, test, said = questions(tmp_path)
    assert dev == [f"Question {number}?" for number in (100, 102, 0, 1, 2)]
    assert test == ["Question 3?", "Question 4?"]
    assert "(sat-math 2): the first rows of test fill them up and are not scored" in said[0]
    found = open_release("agieval", tmp_path)
    assert found.datasets["bc2/agieval", "sat-math"]["dev"][1]["options"] == [
        "A. one", "B. two", "C. three", "D. four",
    ]  # fmt: skip
    assert [file.name for file in found.files] == [
        "AGIEval/data/few_shot_prompts.csv", "AGIEval/data/v1/sat-math.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["(A)1", "(C)3", "(B)2", "(D)4"], ["(A)1", "(B)2", "(C)3", "(D)4"]),
        (["A．1", "(C) 3", " B. 2", "D．4"], ["A．1", " B. 2", "(C) 3", "D．4"]),
        (["(A)1", "(C)2", "(C)3", "(D)4"], ["(A)1", "(C)2", "(C)3", "(D)4"]),
        (["Apples", "Cherries", "Bananas", "Dates"], ["Apples", "Cherries", "Bananas", "Dates"]),
    ],
)
def test_a_label_means_the_letter_that_an_option_begins_with(
    tmp_path: Path, given: list[str], read: list[str]
) -> None:
    release(tmp_path, [row(number, "B", given) for number in range(6)], None)
    found = open_release("agieval", tmp_path)
    assert found.datasets["bc2/agieval", "sat-math"]["test"][0]["options"] == read
    said = "options were put into the order of their letters: sat-math 6"
    assert (said in found.differences) == (given != read)


@pytest.mark.parametrize(
    ("shot", "what"),
    [
        ("{'passage': None", "no Python literal"),
        ("__import__('os')", "no Python literal"),
        ("{'question': '?'}", "a shot has no label, options, passage"),
        (str(row(1, "Z")), "the label is 'Z'"),
    ],
)
def test_shots_are_literals_and_never_run(tmp_path: Path, shot: str, what: str) -> None:
    release(tmp_path, [row(number) for number in range(7)], [shot])
    with pytest.raises(DataError, match=what) as caught:
        open_release("agieval", tmp_path)
    assert str(caught.value.where).endswith("few_shot_prompts.csv:1")


def test_files_that_are_not_single_choice_are_not_looked_at(tmp_path: Path) -> None:
    made_releases.write_releases(tmp_path, ["agieval"])
    assert (tmp_path / "agieval/data/v1/lsat-ar.jsonl").exists()
    found = open_release("agieval", tmp_path)
    assert [name for _, name in found.datasets] == sorted(agieval.FOUR_OPTIONS)
    assert [name for _, name in open_release("jecqa", tmp_path).datasets] == list(agieval.JEC_QA)
