"""The rows of a benchmark's file: CSV, JSON, JSON lines or Parquet, plain or compressed."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from bc2.errors import DataError
from bc2.streams import (
    BadRow,
    first_line,
    numbered_lines,
    open_bytes,
    parse_line,
    reading,
    without_marks,
)
from bc2.text_encoding import likely_encoding

KINDS = (".csv", ".json", ".jsonl", ".ndjson", ".parquet")

#: Bytes of a CSV field. csv's own limit, 128 KiB, is too small for questions about long passages.
_MAX_CELL = 1 << 26


def kind_of(name: str) -> str:
    """The suffix that says how a file is written, without that of its compression."""
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix


def read_rows(file: Path, key: str | None = None) -> Iterator[tuple[int, Any]]:
    """The number (from 1) and the contents of each row.

    Args:
        key: of the list of rows, if a JSON file holds an object.

    Raises:
        DataError: the file is missing or damaged, or a row cannot be read.
    """
    if kind_of(file.name) == ".parquet":
        yield from _parquet_rows(file, str(file))
    else:
        with open_bytes(file) as stream:
            try:
                yield from rows_in(stream, kind_of(file.name), str(file), key)
            except DataError as bad:
                likely = likely_encoding(file)
                if likely is None:
                    raise
                todo = f"make UTF-8 of it: iconv -f {likely} -t UTF-8"
                what = f"{bad.what}; the file is likely in {likely}"
                raise DataError(what, where=bad.where, todo=todo) from bad


def rows_in(
    stream: io.BufferedIOBase, kind: str, where: str, key: str | None = None
) -> Iterator[tuple[int, Any]]:
    """The rows of an open file that is not compressed: see `read_rows`.

    Args:
        kind: as of `kind_of`.
        where: the file, for messages.
    """
    if kind == ".parquet":
        yield from _parquet_rows(stream, where)
    elif kind == ".csv":
        yield from _csv_rows(stream, where)
    elif kind == ".json":
        yield from enumerate(_json_list(stream.read(), where, key), 1)
    else:
        yield from _json_lines(stream, where)


def csv_records(stream: io.BufferedIOBase, where: str) -> Iterator[list[str]]:
    """The records of CSV, its header too. Quoted fields may hold line breaks, kept as they are.

    Raises:
        DataError: not UTF-8, or not CSV.
    """
    csv.field_size_limit(_MAX_CELL)
    try:
        lines = io.TextIOWrapper(cast(IO[bytes], stream), "utf-8-sig", newline="")
        yield from csv.reader(lines, strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(error, where) from error


def field_of(row: Any, field: str, where: str) -> Any:
    """The value of a field of a row. A field is a key, or several keys joined by full stops.

    Raises:
        DataError: the row has no such field.
    """
    if isinstance(row, dict) and field in row:
        return row[field]
    key, _, rest = field.partition(".")
    if rest and isinstance(row, dict) and key in row:
        return field_of(row[key], rest, where)
    known = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
    raise DataError(
        f"no field {field!r} in this benchmark",
        where=where,
        todo=f"set fields; there is: {known[:120]}",
    )


def _parquet_rows(file: Path | io.BufferedIOBase, where: str) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(Path(where)):
        try:
            with pq.ParquetFile(file) as parquet:
                _check_columns(parquet.schema_arrow.names, where)
                rows = parquet.read().to_pylist()
        except pa.ArrowException as error:
            raise EOFError(str(error)) from error
    yield from enumerate(rows, 1)


def _check_columns(names: Iterable[str], where: str) -> None:
    """Raise DataError if a column is there twice: of a row the last would be taken."""
    for name, count in Counter(names).items():
        if name and count > 1:
            raise DataError(
                f"the column {name!r} is there twice", where=where, todo="leave one of them out"
            )


def _csv_rows(stream: io.BufferedIOBase, where: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(_MAX_CELL)
    try:
        lines = io.TextIOWrapper(cast(IO[bytes], stream), "utf-8-sig", newline="")
        rows = csv.DictReader(lines, strict=True)
        _check_columns(rows.fieldnames or (), where)
        yield from enumerate(rows, 1)
    except (csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(error, where) from error


def _json_list(data: bytes, where: str, key: str | None) -> list[Any]:
    try:
        loaded = json.loads(without_marks(data))
    except (ValueError, RecursionError) as error:
        raise _unreadable(error, where) from error
    if key is not None and isinstance(loaded, dict):
        loaded = field_of(loaded, key, where)
    if not isinstance(loaded, list):
        known = ", ".join(loaded) if isinstance(loaded, dict) else "a single value"
        raise DataError(
            "this JSON file is not a list of rows",
            where=where,
            todo=f"set rows to the key of the list; there is: {known[:80]}",
        )
    return loaded


def _json_lines(stream: io.BufferedIOBase, where: str) -> Iterator[tuple[int, Any]]:
    for number, line, _ in numbered_lines(stream):
        if line is not None and not line.strip():
            continue
        try:
            yield number, parse_line(line)
        except BadRow as bad:
            raise _unreadable(bad, f"{where}:{number}") from bad


def _unreadable(error: Exception, where: str) -> DataError:
    what = f"cannot read this benchmark: {first_line(error)}"
    return DataError(what, where=where, todo="repair the file, or fetch it again")
