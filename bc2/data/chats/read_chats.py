"""Conversations out of the files of a source, row by row, in a fixed order and bounded memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bc2.data.chats.bad_chat import BadChat, SkippedRows
from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.conversation import Conversation
from bc2.data.chats.formats import (
    Format,
    check_object,
    read_row,
    recognise,
    unread_keys,
)
from bc2.data.documents import SourceFile
from bc2.data.inputs import file_layout, source_files
from bc2.data.json_rows import json_rows
from bc2.data.tables import check_columns, hf_origin, hf_rows, open_parquet
from bc2.errors import DataError
from bc2.text_encoding import find_likely

#: Rows of a Parquet file that are held at once.
_BATCH = 64


class ReadChat(NamedTuple):
    """A conversation as it was found."""

    conversation: Conversation
    format: str
    """The format of its row, or "made"."""


class _FileRow(NamedTuple):
    number: int
    value: Any
    fault: BadChat | None


@dataclass
class SourceReading:
    """What was found in a source, complete when all of it is read."""

    rows: int = 0
    """Conversations."""
    formats: Counter[str] = field(default_factory=Counter)
    """Conversations by format."""
    ignored: Counter[str] = field(default_factory=Counter)
    """How often each key held something and was not read."""


def read_chats(
    source: ChatSourceConfig, config: ChatsConfig, found: SourceReading, skipped: SkippedRows
) -> Iterator[ReadChat]:
    """The conversations of a source, up to its ``max_rows``, with the section's `system` text.

    Args:
        found, skipped: are added to.

    Raises:
        DataError: nothing to read, a damaged file, or a malformed row that stops the run.
    """
    for chat in _rows(source, config, found, skipped):
        found.rows += 1
        found.formats[chat.format] += 1
        yield ReadChat(_after_system(chat.conversation, config.system), chat.format)
    skipped.check(found.rows, config.max_malformed)
    if not found.rows:
        bad = f": {skipped.counts.total():,} rows were skipped" if skipped.counts else ""
        raise DataError(
            f"source {source.name!r} has no conversations{bad}",
            where=", ".join(skipped.first[:3]) or source.path or source.hf,
            todo="check its path and format",
        )


def _after_system(chat: Conversation, system: str | None) -> Conversation:
    if system is None or chat.messages[0]["role"] == "system":
        return chat
    first = {"role": "system", "content": system}
    return Conversation((first, *chat.messages), chat.source, chat.file, chat.row)


def _rows(
    source: ChatSourceConfig, config: ChatsConfig, found: SourceReading, skipped: SkippedRows
) -> Iterator[ReadChat]:
    if source.environment is not None:
        from bc2.data.chats.instructions import made_chats

        made = made_chats(source_files(source), source.name, config.seed)
        yield from (ReadChat(one, "made") for one in itertools.islice(made, source.max_rows))
        return
    left = source.max_rows
    for name, place, rows in _files(source):
        reading = _FileReading(source, name, place, found, skipped)
        yield from reading.chats(itertools.islice(rows, left))
        if left is not None:
            left -= reading.read
            if left <= 0:
                return


def _files(source: ChatSourceConfig) -> Iterator[tuple[str, str, Iterator[_FileRow]]]:
    """The name of each file in its source, where it is, and its rows."""
    if source.hf is not None:
        origin = hf_origin(source)
        rows = (_FileRow(number, row, None) for number, row in hf_rows(source))
        yield origin, f"hf:{origin}", rows
        return
    files = source_files(source)
    for file in files:
        if file_layout(file.name) == "text":
            raise DataError(
                f"no chats are read from a file of this kind: {file.name}",
                where=str(file.path),
                todo="give .jsonl or .json (also .gz, .zst), .parquet, or a glob that picks them",
            )
    for file in files:
        yield file.name, str(file.path), _file_rows(file, source.encoding)


def _file_rows(file: SourceFile, encoding: str) -> Iterator[_FileRow]:
    if file_layout(file.name) == "parquet":
        yield from _parquet_rows(file)
    else:
        asked = False
        for number, value, fault in json_rows(file.path, encoding):
            if fault is not None and not asked:
                find_likely(fault, file.path, encoding)
                asked = True
            yield _FileRow(number, value, None if fault is None else BadChat.of(fault))


def _parquet_rows(file: SourceFile) -> Iterator[_FileRow]:
    number = 0
    with open_parquet(file) as parquet:
        check_columns(parquet.schema_arrow.names, file.path)
        for batch in parquet.iter_batches(batch_size=_BATCH):
            try:
                rows = [_FileRow(0, row, None) for row in batch.to_pylist()]
            except (ValueError, OverflowError):  # one bad row is not a bad batch
                rows = [_parquet_row(batch.slice(each, 1)) for each in range(len(batch))]
            for row in rows:
                number += 1
                yield row._replace(number=number)


def _parquet_row(one: Any) -> _FileRow:
    try:
        return _FileRow(0, one.to_pylist()[0], None)
    except UnicodeDecodeError as error:
        return _FileRow(0, None, BadChat("bad_utf8", f"not UTF-8: {error.reason}"))
    except (ValueError, OverflowError) as error:  # such as a time after the year 9999
        return _FileRow(0, None, BadChat("bad_value", f"a value that cannot be read: {error}"))


class _FileReading:
    """Reads the rows of one file, which are all of one format."""

    def __init__(
        self,
        source: ChatSourceConfig,
        name: str,
        place: str,
        found: SourceReading,
        skipped: SkippedRows,
    ):
        self.read = 0
        self._source = source
        self._name = name
        self._place = place
        self._found = found
        self._skipped = skipped
        self._format: Format | None = None
        self._begun = 0

    def chats(self, rows: Iterator[_FileRow]) -> Iterator[ReadChat]:
        for row in rows:
            self.read += 1
            try:
                yield self._chat(row)
            except BadChat as bad:
                place, name = (f"{path}:{row.number}" for path in (self._place, self._name))
                self._skipped.reject(bad, place, name)

    def _chat(self, row: _FileRow) -> ReadChat:
        if row.fault is not None:
            raise row.fault
        form = self._format_of(row)
        messages = tuple(read_row(row.value, form))
        said = Conversation(messages, self._source.name, self._name, row.number)
        self._found.ignored.update(unread_keys(row.value, form))
        return ReadChat(said, form)

    def _format_of(self, row: _FileRow) -> Format:
        """The format of the file, which the recipe states or its first row of any decides."""
        if self._source.format != "auto":
            check_object(row.value)
            return self._source.format
        try:
            form = recognise(row.value)
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
        return self._format
