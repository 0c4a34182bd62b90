"""GAOKAO-Bench: single-choice questions whose text holds their options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import DataError
from bc2.harness.release import open_release

ASKED = "1. 下列哪一项是偶数（ ）\nA. 1  B．2\nC. 3  D、5\n"


def write(folder: Path, name: str, rows: list[tuple[str, Any]]) -> None:
    examples = [{"question": asked, "answer": answer} for asked, answer in rows]
    path = folder / f"2010-2022_{name}_MCQs.json"
    path.write_text(json.dumps({"keywords": name, "example": examples}), "utf-8")


def test_questions_with_several_answers_are_left_out(tmp_path: Path) -> None:
    several = [("1. 无选项", ["A", "B", "C"]), (ASKED, ["AB"]), (ASKED, ["E"])]
    write(tmp_path, "Physics", [*several, *[(ASKED, [letter]) for letter in "ABCDDCB"]])
    write(tmp_path, "Geography", [(ASKED, ["A", "B"])])  # is not read at all
    release = open_release("gaokao", tmp_path)
    splits = release.datasets["bc2/gaokao", "physics"]
    assert list(release.datasets) == [("bc2/gaokao", "physics")]
    assert [row["answer"] for row in splits["dev"]] == [*"ABCDD"]
    assert splits["test"] == [{"question": ASKED, "answer": letter} for letter in "CB"]
    assert release.differences[0].endswith("are left out: physics 3 of 10")
    assert "the first 5 rows of each subject are shots" in release.differences[1]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (("1. 无选项", ["A"]), "no options A. to D."),
        ((ASKED, "A"), "no list of letters"),
        ((ASKED, ["？"]), "no list of letters"),
    ],
)
def test_rows_that_are_not_such_questions(tmp_path: Path, row: Any, what: str) -> None:
    write(tmp_path, "Physics", [(ASKED, ["A"]), row])
    with pytest.raises(DataError, match=what) as caught:
        open_release("gaokao", tmp_path)
    assert str(caught.value.where).endswith("2010-2022_Physics_MCQs.json:2")
