"""GSM8K: JSON lines of its authors, or the hub's Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.errors import DataError
from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import AGAIN, json_rows, question, rows_at
from bc2.harness.releases.source import PARQUET, Hub, Layout, Place, Row, Source, Tables, under


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    tables.datasets["openai/gsm8k", "main"] = {
        split: rows_at(tables, place, "", split, _rows) for split in ("train", "test")
    }
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, ("question", "answer")):
        if "####" not in question(row, "answer", where):
            raise DataError("the answer has no result after ####", where=where, todo=AGAIN)
        yield {"question": question(row, "question", where), "answer": row["answer"]}


SOURCE = Source(
    name="gsm8k",
    title="GSM8K",
    layouts=(
        Layout(under("gsm8k", "grade_school_math") + r"(?P<split>train|test)\.jsonl"),
        Layout(under("gsm8k") + rf"main/(?P<split>train|test){PARQUET}"),
    ),
    read=_read,
    expected="gsm8k/train.jsonl and gsm8k/test.jsonl",
    archives="(?i)gsm8k",
    hub=Hub("openai/gsm8k", ("main/train-*.parquet", "main/test-*.parquet")),
)
