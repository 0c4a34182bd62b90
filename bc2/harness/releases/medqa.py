"""MedQA, USMLE with five options: JSON lines of its authors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.errors import DataError
from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import (
    AGAIN,
    SHOTS,
    first_rows_note,
    json_rows,
    label,
    question,
    rows_at,
    text,
    with_shots,
)
from bc2.harness.releases.source import Hub, Layout, Place, Row, Source, Tables, under

_LETTERS = ("A", "B", "C", "D", "E")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    rows = rows_at(tables, place, "", "test", _rows)
    if "train" in place.splits():
        shots = rows_at(tables, place, "", "train", _rows)[:SHOTS]
        tables.notes.append(f"the first {SHOTS} rows of train are the shots")
    else:
        shots, rows = with_shots(rows, (), place.root)
        tables.notes.append(first_rows_note("test"))
    tables.datasets["bc2/medqa", None] = {"dev": shots, "test": rows}
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, ("question", "options", "answer_idx")):
        options = row["options"]
        if not isinstance(options, dict) or tuple(sorted(options)) != _LETTERS:
            raise DataError("the options are not A to E", where=where, todo=AGAIN)
        label(row["answer_idx"], _LETTERS, where)
        yield {
            "question": question(row, "question", where),
            "options": {letter: text(options, letter, where) for letter in _LETTERS},
            "answer_idx": row["answer_idx"],
        }


SOURCE = Source(
    name="medqa",
    title="MedQA",
    layouts=(
        Layout(under("medqa_5options") + r"(?P<split>train|test)\.jsonl"),
        Layout(r"(?P<root>(?:.*/)?questions/US/)(?P<split>train|test)\.jsonl"),
    ),
    read=_read,
    expected="data_clean.zip with questions/US/test.jsonl, or medqa_5options/test.jsonl",
    archives="(?i)med_?qa|data_clean",
    hub=Hub("bigbio/med_qa", ("data_clean.zip",)),
)
