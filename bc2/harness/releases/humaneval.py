"""HumanEval: JSON lines of its authors, or the hub's Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import json_rows, question, rows_at
from bc2.harness.releases.source import (
    ANYWHERE,
    PARQUET,
    Hub,
    Layout,
    Place,
    Row,
    Source,
    Tables,
)

_COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    rows = rows_at(tables, place, "", "test", _rows)
    tables.datasets["openai/openai_humaneval", None] = {"test": rows}
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, _COLUMNS):
        yield {column: question(row, column, where) for column in _COLUMNS}


SOURCE = Source(
    name="humaneval",
    title="HumanEval",
    layouts=(
        Layout(ANYWHERE + r"HumanEval\.jsonl(\.gz|\.zst)?", split="test"),
        Layout(ANYWHERE + rf"openai_humaneval/(?P<split>test){PARQUET}"),
    ),
    read=_read,
    expected="HumanEval.jsonl.gz",
    archives="(?i)humaneval",
    hub=Hub("openai/openai_humaneval", ("openai_humaneval/test-*.parquet",)),
)
