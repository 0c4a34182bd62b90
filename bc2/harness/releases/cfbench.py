"""CFBench: requests with constraints, in Chinese. JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import json_rows, rows_at, text
from bc2.harness.releases.source import ANYWHERE, Layout, Place, Row, Source, Tables


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    tables.datasets["bc2/cfbench", None] = {"test": rows_at(tables, place, "", "test", _rows)}
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, ("prompt",)):
        yield {"prompt": text(row, "prompt", where)}


SOURCE = Source(
    name="cfbench",
    title="CFBench",
    layouts=(Layout(ANYWHERE + r"cfbench_data\.json", split="test"),),
    read=_read,
    expected="cfbench_data.json",
    archives="(?i)cfbench",
)
