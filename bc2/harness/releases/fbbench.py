"""FB-Bench: a question, an answer to it and what a person says of that, in Chinese. JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import json_rows, rows_at, text
from bc2.harness.releases.source import ANYWHERE, Layout, Place, Row, Source, Tables

_COLUMNS = ("user_query", "origin_first_response", "feedback")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    tables.datasets["bc2/fbbench", None] = {"test": rows_at(tables, place, "", "test", _rows)}
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, _COLUMNS):
        yield {name: text(row, name, where) for name in _COLUMNS}


SOURCE = Source(
    name="fbbench",
    title="FB-Bench",
    layouts=(Layout(ANYWHERE + r"fb_bench_dataset(?:_v\d+)?\.json", split="test"),),
    read=_read,
    expected="fb_bench_dataset_v3.json",
    archives="(?i)fb.?bench",
)
