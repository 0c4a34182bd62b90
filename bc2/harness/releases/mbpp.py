"""MBPP: JSON lines of its authors, in the official splits, or the hub's Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bc2.errors import DataError
from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.checks import AGAIN, json_rows, question, rows_at, text, texts
from bc2.harness.releases.source import (
    ANYWHERE,
    PARQUET,
    Hub,
    Layout,
    Place,
    Row,
    Source,
    Tables,
    under,
)

#: The authors' splits: first and last task_id.
SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}

_TEXTS = ("text", "code")
_LISTS = ("test_list", "challenge_test_list")


def _read(place: Place, subsets: Sequence[str]) -> Tables:
    tables = Tables()
    if place.splits() == {"all"}:
        rows = rows_at(tables, place, "", "all", _rows)
        splits = {
            split: [row for row in rows if first <= row["task_id"] <= last]
            for split, (first, last) in SPLITS.items()
        }
    else:
        splits = {split: rows_at(tables, place, "", split, _rows) for split in SPLITS}
    empty = ", ".join(split for split, rows in splits.items() if not rows)
    if empty:
        raise DataError(f"no rows of {empty}", where=place.root, todo=AGAIN)
    tables.datasets["google-research-datasets/mbpp", "full"] = splits
    return tables


def _rows(file: ReleaseFile) -> Iterator[Row]:
    for where, row in json_rows(file, (*_TEXTS, *_LISTS, "task_id", "test_setup_code")):
        number = row["task_id"]
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 974:
            raise DataError(
                f"task_id is {str(number)[:40]!r}, not 1 to 974", where=where, todo=AGAIN
            )
        yield {
            "task_id": number,
            **{column: question(row, column, where) for column in _TEXTS},
            **{column: texts(row, column, where) for column in _LISTS},
            "test_setup_code": text(row, "test_setup_code", where),
        }


SOURCE = Source(
    name="mbpp",
    title="MBPP",
    layouts=(
        Layout(ANYWHERE + r"mbpp\.jsonl(\.gz|\.zst)?", split="all"),
        Layout(under("mbpp") + rf"full/(?P<split>{'|'.join(SPLITS)}){PARQUET}"),
    ),
    read=_read,
    expected="mbpp.jsonl",
    archives="(?i)mbpp",
    hub=Hub("google-research-datasets/mbpp", ("full/*.parquet",)),
)
