"""What every row of a release must be, and where its shots come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from bc2.errors import DataError
from bc2.harness.release_files import ReleaseFile
from bc2.harness.releases.source import Place, Row, Tables

#: Rows that become shots where a release has none of its own.
SHOTS = 5

AGAIN = "fetch the release again, or give the folder of another copy"


def csv_rows(file: ReleaseFile, *headers: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The place (``file:row``, from 1) and the fields of each row.

    Args:
        headers: that the file may have, each with its columns in their order.

    Raises:
        DataError: another header, or a row with more or fewer fields.
    """
    records = file.records()
    header = next(records, [])
    if header not in [list(known) for known in headers]:
        raise foreign(file, header, headers)
    for number, record in enumerate(records, 1):
        where = f"{file.where}:{number}"
        if len(record) != len(header):
            raise DataError(
                f"a row has {len(record)} fields, and the header {len(header)}",
                where=where,
                todo=AGAIN,
            )
        yield where, dict(zip(header, record, strict=True))


def foreign(file: ReleaseFile, header: Sequence[str], known: Sequence[Sequence[str]]) -> DataError:
    """A file whose columns are not the release's."""
    return DataError(
        f"the columns are not this benchmark's: {','.join(header)[:80] or 'the file is empty'}",
        where=file.where,
        todo=f"it must begin with {' or '.join(','.join(columns) for columns in known)}; {AGAIN}",
    )


def json_rows(
    file: ReleaseFile, columns: Collection[str], key: str | None = None
) -> Iterator[tuple[str, Row]]:
    """The place and the contents of each row of JSON, JSON lines or Parquet.

    Args:
        columns: that each row must have.
        key: of the list of rows, if the file holds an object.

    Raises:
        DataError: a row is no object, or lacks a column.
    """
    for number, row in file.rows(key):
        where = f"{file.where}:{number}"
        missing = [name for name in columns if not isinstance(row, dict) or name not in row]
        if missing:
            has = ", ".join(row) if isinstance(row, dict) else f"a JSON {type(row).__name__}"
            raise DataError(
                f"a row has no {', '.join(missing)}; there is: {has[:80]}", where=where, todo=AGAIN
            )
        yield where, row


def text(row: Row, column: str, where: str) -> str:
    """A column that must be text, which may be empty.

    Raises:
        DataError: it is something else.
    """
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{column} is a {type(value).__name__}, not text", where=where, todo=AGAIN)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
        raise DataError(f"{column} is no Unicode text", where=where, todo=AGAIN) from error
    return value


def question(row: Row, column: str, where: str) -> str:
    """A column that must be text and not empty.

    Raises:
        DataError: it is empty, or no text.
    """
    value = text(row, column, where)
    if not value.strip():
        raise DataError(f"{column} is empty", where=where, todo=AGAIN)
    return value


def texts(row: Row, column: str, where: str) -> list[str]:
    """A column that must be a list of text.

    Raises:
        DataError: it is something else.
    """
    value = row[column]
    if not isinstance(value, list):
        raise DataError(f"{column} is no list of text", where=where, todo=AGAIN)
    return [text({column: one}, column, where) for one in value]


def label(value: Any, known: Sequence[Any], where: str) -> int:
    """The index of a label among the known ones.

    Raises:
        DataError: it is none of them.
    """
    # A boolean equals 0 or 1.
    if isinstance(value, bool) or value not in known:
        raise DataError(
            f"the answer is {str(value)[:40]!r}, not one of {', '.join(map(str, known))}",
            where=where,
            todo=AGAIN,
        )
    return known.index(value)


def rows_at(
    tables: Tables,
    place: Place,
    subset: str,
    split: str,
    read: Callable[[ReleaseFile], Iterator[Row]],
) -> list[Row]:
    """The rows of a subset's split.

    Raises:
        DataError: there is no file of it, no row in it, or a row is wrong.
    """
    files = place.files.get((subset, split), ())
    rows = tables.rows_of(files, read)
    if not rows:
        raise DataError(
            f"{subset + ': ' if subset else ''}{split} "
            + ("has no rows" if files else "has no file"),
            where=files[0].where if files else place.root,
            todo=AGAIN,
        )
    return rows


def subject_tables(
    place: Place,
    subjects: Sequence[str],
    path: str,
    scored: str,
    read: Callable[[ReleaseFile], Iterator[Row]],
) -> Tables:
    """The splits dev and `scored` of subjects; without any file of dev the first rows are shots.

    Args:
        path: lm-eval's dataset_path.
    """
    tables = Tables()
    own_shots = "dev" in place.splits()
    for subject in subjects:
        rows = rows_at(tables, place, subject, scored, read)
        if own_shots:
            shots = rows_at(tables, place, subject, "dev", read)
        else:
            shots, rows = with_shots(rows, (), f"{place.root}{subject}")
        tables.datasets[path, subject] = {"dev": shots, scored: rows}
    if not own_shots:
        tables.notes.append(first_rows_note(f"each subject's {scored}"))
    return tables


def with_shots(rows: list[Row], shots: Sequence[Row], where: str) -> tuple[list[Row], list[Row]]:
    """Shots, filled up to five with the first rows, and the rows that are left.

    Raises:
        DataError: then there is no row left.
    """
    missing = max(SHOTS - len(shots), 0)
    if len(rows) <= missing:
        raise DataError(
            f"{len(rows)} rows are too few: {missing} become shots and none is left to score",
            where=where,
            todo=AGAIN,
        )
    return [*shots, *rows[:missing]], rows[missing:]


def first_rows_note(where: str) -> str:
    """What is said where the first rows became shots."""
    return (
        f"the release has no shots of its own: the first {SHOTS} rows of {where} are shots and are "
        "not scored"
    )


def several_right_note(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """What is said of rows that were left out.

    Args:
        counts: of each subset, rows that were left out and all rows.
    """
    told = [f"{name} {some:,} of {every:,}" for name, (some, every) in counts.items() if some]
    return (
        [f"rows without exactly one right answer are left out: {', '.join(told)}"] if told else []
    )
