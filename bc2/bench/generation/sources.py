"""Real prompts and questions from files."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bc2.errors import DataError

#: What ends the name of a file with the examples of a subject, and of one with its questions.
EXAMPLES, QUESTIONS = "_dev.csv", "_test.csv"

#: Columns of a row of MMLU: the question, four choices, the number of the right one.
_COLUMNS = 6

_LETTERS = "ABCD"


class Subject(NamedTuple):
    """Rows of one of MMLU's subjects, as text."""

    header: str
    examples: list[str]
    """Each ends with its answer."""
    questions: list[str]
    """Each ends where the answer is expected."""


def read_prompts(path: Path, count: int) -> list[str]:
    """The first prompts of a file of JSON lines, compressed with gzip or not.

    A line has ``prompt``, or ``instruction`` and perhaps ``input``, as Alpaca's do.

    Raises:
        DataError: a line has neither, or there are fewer lines.
    """
    found: list[str] = []
    for where, line in _lines(path):
        if len(found) == count:
            break
        found.append(_prompt(line, where))
    if len(found) < count:
        raise DataError(
            f"the file has {len(found)} prompts, and {count} are needed",
            where=str(path),
            todo="lower --requests",
        )
    return found


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", line
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"the prompts cannot be read: {error}", where=str(path)) from None


def _prompt(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=where) from None
    row = row if isinstance(row, dict) else {}
    parts = [row.get("prompt", row.get("instruction")), row.get("input") or None]
    text = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(parts[0], str) or not text:
        raise DataError(
            "the line has no prompt",
            where=where,
            todo='write objects with "prompt", or "instruction" and "input"',
        )
    return text


def read_mmlu(folder: Path, subjects: int, questions: int) -> list[Subject]:
    """The first questions of the first subjects.

    Args:
        folder: has ``dev/SUBJECT_dev.csv`` and ``test/SUBJECT_test.csv``, with the columns
            question, four choices, and the number of the right one from 0.

    Raises:
        DataError: a file is missing or has other columns, or there are too few subjects.
    """
    names = sorted(path.name.removesuffix(EXAMPLES) for path in (folder / "dev").glob("*.csv"))
    if len(names) < subjects:
        raise DataError(
            f"there are {len(names)} subjects, and {subjects} are needed",
            where=str(folder / "dev"),
            todo="give the folder that has dev/ and test/, or lower --subjects",
        )
    return [_subject(folder, name, questions) for name in names[:subjects]]


def _subject(folder: Path, name: str, questions: int) -> Subject:
    topic = name.replace("_", " ")
    examples = _rows(folder / "dev" / f"{name}{EXAMPLES}")
    asked = _rows(folder / "test" / f"{name}{QUESTIONS}")[:questions]
    return Subject(
        f"The following are multiple choice questions (with answers) about {topic}.\n\n",
        [f"{_asked(row)} {_LETTERS[int(row[-1])]}\n\n" for row in examples],
        [_asked(row) for row in asked],
    )


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the questions cannot be read: {error}", where=str(path)) from None
    for number, row in enumerate(rows, 2):
        if len(row) != _COLUMNS or row[-1] not in ("0", "1", "2", "3"):
            raise DataError(
                "not a question, four choices and the number of the right one",
                where=f"{path}, row {number}",
            )
    return rows


def _asked(row: list[str]) -> str:
    question, *choices, _ = row
    listed = "".join(f"{letter}. {text}\n" for letter, text in zip(_LETTERS, choices, strict=True))
    return f"{question.strip()}\n{listed}Answer:"
