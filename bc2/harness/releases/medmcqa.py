"""MedMCQA: JSON lines with a letter as answer, or the hub's Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.errors import DataError
from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import (
    AGAIN,
    first_rows_note,
    json_rows,
    label,
    question,
    rows_at,
    text,
    with_shots,
)
from bc2.harness.releases.source import PARQUET, Hub, Layout, Place, Row, Source, Tables, under
from bc2.harness.rows import kind_of

_LETTERS = ("A", "B", "C", "D")
_COLUMNS = ("opa", "opb", "opc", "opd")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    rows = rows_at(tables, place, "", "validation", _rows)
    if "train" in place.splits():
        shots = rows_at(tables, place, "", "train", _rows)
    else:
        shots, rows = with_shots(rows, (), place.root)
        tables.notes.append(first_rows_note("validation"))
    tables.datasets["openlifescienceai/medmcqa", None] = {"train": shots, "validation": rows}
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    return _hub_rows(file) if kind_of(file.name) == ".parquet" else _lettered_rows(file)


def _hub_rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, ("question", *_COLUMNS, "cop")):
        yield {
            "question": question(row, "question", where),
            **{column: text(row, column, where) for column in _COLUMNS},
            "cop": label(row["cop"], range(4), where),
        }


def _lettered_rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, ("question", "options", "answer_idx")):
        options = row["options"]
        if not isinstance(options, dict) or tuple(sorted(options)) != _LETTERS:
            raise DataError("the options are not A to D", where=where, todo=AGAIN)
        lettered = zip(_COLUMNS, _LETTERS, strict=True)
        yield {
            "question": question(row, "question", where),
            **{column: text(options, letter, where) for column, letter in lettered},
            "cop": label(row["answer_idx"], _LETTERS, where),
        }


SOURCE = Source(
    name="medmcqa",
    title="MedMCQA",
    layouts=(
        Layout(under("medmcqa") + r"test\.jsonl", split="validation"),
        Layout(under("medmcqa") + rf"(?:data/)?(?P<split>train|validation){PARQUET}"),
    ),
    read=_read,
    expected="medmcqa/test.jsonl, or the hub's data/train-*.parquet and data/validation-*.parquet",
    archives="(?i)medmcqa",
    hub=Hub("openlifescienceai/medmcqa", ("data/train-*.parquet", "data/validation-*.parquet")),
)
