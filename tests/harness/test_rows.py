"""Rows of CSV, JSON, JSON lines and Parquet: the same whatever the quotes, marks and line ends."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bc2.errors import DataError
from bc2.harness.rows import KINDS, csv_records, kind_of, read_rows, rows_in

ROWS = [{"q": "Why, “so”?\nNow", "a": "A"}, {"q": ' "quoted" 题', "a": ""}]

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def as_csv(rows: list[list[str]], **how: Any) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, **how).writerows(rows)
    return out.getvalue().encode()


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == ".csv":
        path.write_bytes(as_csv([["q", "a"], *([row["q"], row["a"]] for row in ROWS)]))
    elif kind == ".json":
        path.write_text(json.dumps({"examples": ROWS}), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    assert list(read_rows(path, "examples")) == [*enumerate(ROWS, 1)]
    with path.open("rb") as stream:
        assert list(rows_in(stream, kind, "x", "examples")) == [*enumerate(ROWS, 1)]
    if kind == ".parquet":
        return
    for suffix, packed in (
        (".gz", gzip.compress(path.read_bytes())),
        (".zst", zstandard.compress(path.read_bytes())),
    ):
        other = path.with_name(path.name + suffix)
        other.write_bytes(packed)
        assert kind_of(other.name) == kind
        assert list(read_rows(other, "examples")) == [*enumerate(ROWS, 1)]


@given(
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=4), min_size=1, max_size=5),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_csv_is_read_as_it_was_written(
    rows: list[list[str]], quoting: Any, end: str, mark: bytes
) -> None:
    """Line breaks in fields too, whichever they are; a mark at the start is no text."""
    if rows[0][0].startswith("\ufeff") and not mark:
        return
    if quoting == csv.QUOTE_MINIMAL:  # Python's writer leaves a lone CR without quotes
        rows = [[cell.replace("\r", "") for cell in row] for row in rows]
    data = mark + as_csv(rows, quoting=quoting, lineterminator=end)
    assert list(csv_records(io.BytesIO(data), "x")) == rows


@given(rows=st.lists(st.dictionaries(CELLS, CELLS, max_size=3), max_size=4), crlf=st.booleans())
def test_json_lines_are_read_as_they_were_written(rows: list[dict[str, str]], crlf: bool) -> None:
    end = "\r\n" if crlf else "\n"
    data = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()
    for mark in (b"", b"\xef\xbb\xbf"):
        found = rows_in(io.BytesIO(mark + data), ".jsonl", "x")
        assert [row for _, row in found] == rows


@pytest.mark.parametrize(
    ("kind", "data", "what"),
    [
        (".csv", b'a,b\n"x"y,z\n', "expected after"),
        (".csv", "题,a\n".encode("gb18030"), "decode"),
        (".json", b"{", "Expecting"),
        (".json", b'{"a": 1}', "not a list of rows"),
        (".jsonl", b"{}\n{,", "not JSON"),
        (".jsonl", b'[\n{"a": 1}\n]', "a list over several lines"),
        (".csv", b"a,b,a\n1,2,3\n", "the column 'a' is there twice"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(kind: str, data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        list(rows_in(io.BytesIO(data), kind, "the/file"))
    assert str(caught.value.where).startswith("the/file")


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["q", "q"]), path)
    with pytest.raises(DataError, match="the column 'q' is there twice") as caught:
        list(read_rows(path))
    assert caught.value.where == str(path)


@pytest.mark.parametrize("kind", [".csv", ".json", ".jsonl"])
def test_the_likely_encoding_is_told(tmp_path: Path, kind: str) -> None:
    row = {"question": "编码是字符与字节之间的对应，同一段文字可以有不同的写法。"}
    text = json.dumps([row] if kind == ".json" else row, ensure_ascii=False)
    text = f"question\n{row['question']}\n" if kind == ".csv" else text
    path = tmp_path / f"rows{kind}"
    path.write_bytes(text.encode("gb18030"))
    with pytest.raises(DataError, match="the file is likely in gb18030") as caught:
        list(read_rows(path))
    assert "iconv -f gb18030" in str(caught.value.todo)
