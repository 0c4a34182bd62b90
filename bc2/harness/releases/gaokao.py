"""GAOKAO-Bench: single-choice questions of nine subjects, as JSON of its authors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bc2.errors import DataError
from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import (
    AGAIN,
    first_rows_note,
    json_rows,
    question,
    rows_at,
    several_right_note,
    with_shots,
)
from bc2.harness.releases.source import ANYWHERE, Layout, Place, Row, Source, Tables

#: The name of a file, without the years in front and ``_MCQs.json``, to its subject. Those of
#: geography are not here: they come several to a passage, with as many answers.
FILES = {
    "Biology": "biology",
    "Chemistry": "chemistry",
    "Chinese_Lang_and_Usage": "chinese",
    "English": "english",
    "History": "history",
    "Math_I": "math_i",
    "Math_II": "math_ii",
    "Physics": "physics",
    "Political_Science": "political_science",
}

_LETTERS = ("A", "B", "C", "D")
_OPTIONS = re.compile(r".*".join(rf"{letter}\s*[.．、:：]" for letter in _LETTERS), re.DOTALL)


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    left_out = {}
    for subject in subsets:
        every = rows_at(tables, place, subject, "test", _rows)
        rows = [row for row in every if row["answer"]]
        left_out[subject] = (len(every) - len(rows), len(every))
        shots, rows = with_shots(rows, (), f"{place.root}{subject}")
        tables.datasets["bc2/gaokao", subject] = {"dev": shots, "test": rows}
    tables.notes += [*several_right_note(left_out), first_rows_note("each subject")]
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    """Rows with an answer that is empty where it is not one letter."""
    for where, row in json_rows(file, ("question", "answer"), "example"):
        letters = row["answer"]
        if not isinstance(letters, list) or not all(
            isinstance(one, str) and re.fullmatch("[A-G]+", one) for one in letters
        ):
            raise DataError(
                f"the answer is {str(letters)[:40]!r}, no list of letters", where=where, todo=AGAIN
            )
        asked = question(row, "question", where)
        single = len(letters) == 1 and letters[0] in _LETTERS
        if single and not _OPTIONS.search(asked):
            raise DataError("the question has no options A. to D.", where=where, todo=AGAIN)
        yield {"question": asked, "answer": letters[0] if single else ""}


SOURCE = Source(
    name="gaokao",
    title="GAOKAO-Bench",
    layouts=(Layout(ANYWHERE + r"\d{4}-\d{4}_(?P<subset>\w+)_MCQs\.json", split="test"),),
    read=_read,
    expected="Objective_Questions/*_MCQs.json of GAOKAO-Bench's Data folder",
    archives="(?i)gaokao",
    subsets=tuple(FILES.values()),
    file_names=FILES,
)
