"""Conversations out of the files of a source, row by row, in a fixed order and bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bc2.data.chats.bad_chat import SkippedRows
from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.conversation import Conversation
from bc2.data.chats.formats import Format, read_row, recognise, unread_keys
from bc2.data.chats.source_rows import FileFormat, SourceReading, SourceRow, read_source
from bc2.data.inputs import source_files
from bc2.errors import DataError


class ReadChat(NamedTuple):
    """A conversation as it was found."""

    conversation: Conversation
    format: str
    """The format of its row, or "made"."""


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

    def reader_of(name: str) -> Callable[[SourceRow], ReadChat]:
        stated = None if source.format == "auto" else source.format
        form_of = FileFormat[Format](stated, recognise)

        def read(row: SourceRow) -> ReadChat:
            form = form_of.of(row)
            said = Conversation(tuple(read_row(row.value, form)), source.name, name, row.number)
            found.ignored.update(unread_keys(row.value, form))
            return ReadChat(said, form)

        return read

    yield from read_source(source, source.max_rows, skipped, reader_of)
