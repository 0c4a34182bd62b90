"""The rows of a source's files, in a fixed order and bounded memory, whatever they hold."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from bc2.data.chats.bad_chat import BadChat, SkippedRows
from bc2.data.chats.formats import check_object
from bc2.data.documents import SourceFile
from bc2.data.inputs import file_layout, source_files
from bc2.data.json_rows import json_rows
from bc2.data.source_config import OriginConfig
from bc2.data.tables import check_columns, hf_origin, hf_rows, open_parquet
from bc2.errors import DataError
from bc2.text_encoding import find_likely

#: Rows of a Parquet file that are held at once.
_BATCH = 64

Read = TypeVar("Read")
Form = TypeVar("Form", bound=str)


class SourceRow(NamedTuple):
    """A row by its number in its file, from 1: its value, or why it has none."""

    number: int
    value: Any
    fault: BadChat | None


@dataclass
class SourceReading:
    """What was found in a source, complete when all of it is read."""

    rows: int = 0
    """Conversations, or comparisons."""
    formats: Counter[str] = field(default_factory=Counter)
    """The same by format."""
    ignored: Counter[str] = field(default_factory=Counter)
    """How often each key held something and was not read."""


class FileFormat(Generic[Form]):
    """The format of a file, which the recipe states or its first row of any decides.

    Args:
        stated: by the recipe; None: not.
        recognise: the format of a row; raises BadChat if it has none.
    """

    def __init__(self, stated: Form | None, recognise: Callable[[Any], Form]):
        self._format, self._stated = stated, stated is not None
        self._recognise = recognise
        self._begun = 0

    def of(self, row: SourceRow) -> Form:
        """The format of a row. Raises: BadChat if it has none, or not that of its file."""
        if self._stated and self._format is not None:
            check_object(row.value)
            return self._format
        try:
            form = self._recognise(row.value)
        except BadChat as bad:
            if bad.reason != "no_format" or self._format is None:
                raise
            form = self._format  # as one of this, it can be said what it lacks
        if self._format is None:
            self._format, self._begun = form, row.number
        if form != self._format:
            raise BadChat(
                "mixed_formats",
                f"of the format {form!r}, but row {self._begun:,} of the same file is of "
                f"{self._format!r}",
                "divide the file by format, or set the source's format to read one of them",
            )
        return form


def read_source(
    source: OriginConfig, most: int | None, skipped: SkippedRows,
    reader_of: Callable[[str], Callable[[SourceRow], Read]],
) -> Iterator[Read]:  # fmt: skip
    """What is read of the rows of a source, in the order of files and rows.

    Args:
        most: rows at most, from its beginning; None: all.
        skipped: is added to.
        reader_of: called with the name of each file for what reads its rows, which raises BadChat
            of one that is malformed.

    Raises:
        DataError: nothing to read, a damaged file, or a malformed row that stops the run.
    """
    for name, place, rows in _files(source):
        read = reader_of(name)
        for row in itertools.islice(rows, most):
            if most is not None:
                most -= 1
            try:
                if row.fault is not None:
                    raise row.fault
                found = read(row)
            except BadChat as bad:
                skipped.reject(bad, f"{place}:{row.number}", f"{name}:{row.number}")
                continue
            yield found
        if most == 0:
            return


def _files(source: OriginConfig) -> Iterator[tuple[str, str, Iterator[SourceRow]]]:
    """The name of each file in its source, where it is, and its rows."""
    if source.hf is not None:
        origin = hf_origin(source)
        rows = (SourceRow(number, row, None) for number, row in hf_rows(source))
        yield origin, f"hf:{origin}", rows
        return
    files = source_files(source)
    for file in files:
        if file_layout(file.name) == "text":
            raise DataError(
                f"no rows are read from a file of this kind: {file.name}",
                where=str(file.path),
                todo="give .jsonl or .json (also .gz, .zst), .parquet, or a glob that picks them",
            )
    for file in files:
        yield file.name, str(file.path), _file_rows(file, source.encoding)


def _file_rows(file: SourceFile, encoding: str) -> Iterator[SourceRow]:
    if file_layout(file.name) == "parquet":
        yield from _parquet_rows(file)
    else:
        asked = False
        for number, value, fault in json_rows(file.path, encoding):
            if fault is not None and not asked:
                find_likely(fault, file.path, encoding)
                asked = True
            yield SourceRow(number, value, None if fault is None else BadChat.of(fault))


def _parquet_rows(file: SourceFile) -> Iterator[SourceRow]:
    number = 0
    with open_parquet(file) as parquet:
        check_columns(parquet.schema_arrow.names, file.path)
        for batch in parquet.iter_batches(batch_size=_BATCH):
            try:
                rows = [SourceRow(0, row, None) for row in batch.to_pylist()]
            except (ValueError, OverflowError):  # one bad row is not a bad batch
                rows = [_parquet_row(batch.slice(each, 1)) for each in range(len(batch))]
            for row in rows:
                number += 1
                yield row._replace(number=number)


def _parquet_row(one: Any) -> SourceRow:
    try:
        return SourceRow(0, one.to_pylist()[0], None)
    except UnicodeDecodeError as error:
        return SourceRow(0, None, BadChat("bad_utf8", f"not UTF-8: {error.reason}"))
    except (ValueError, OverflowError) as error:  # such as a time after the year 9999
        return SourceRow(0, None, BadChat("bad_value", f"a value that cannot be read: {error}"))
