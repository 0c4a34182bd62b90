"""A chat with another program: one answer for each line that comes. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from bc2.chat.shown import Shown, remarks
from bc2.chat.talk import Talk, Turn
from bc2.console import emit_line, note
from bc2.errors import DataError, UsageError, nearest
from bc2.streams import MAX_DOCUMENT_BYTES, BadRow, decode, numbered_lines, parse_line

_KEY = "content"


def answer_lines(talk: Talk, *, json: bool) -> None:
    """Answer each line of standard input before the next one is read.

    Nothing in them is a command. A line that is wrong ends it, after the answers before it.

    Args:
        json: print a JSON object for each answer; lines are objects too, with a `content`, if
            the first one begins as one.

    Raises:
        DataError: a line that is no message, or one that the window has no room for.
        ReaderGone, OutputLost: see `check_output`.
    """
    for index, (where, message) in enumerate(_messages(objects=json)):
        before, shown = talk.dialogue.left_out, Shown()
        try:
            turn = talk.say(message, _nothing if json else shown.add)
        except (DataError, UsageError) as error:
            raise type(error)(error.what, where=where, todo=error.todo) from None
        if json:
            emit_line(_row(index, message, turn))
            continue
        shown.end()
        for line in remarks(turn, before, talk):
            note(f"{where}: {line}")


def _nothing(_: str) -> None:
    """An answer in JSON is shown when it is whole."""


def _row(index: int, message: str, turn: Turn) -> dict[str, Any]:
    return {
        "index": index, "prompt": message, "text": turn.text, "tokens": len(turn.ids),
        "finish_reason": turn.finish_reason, "left_out": turn.left_out, "cut": turn.cut,
        "prompt_tokens": turn.prompt_tokens, "read_tokens": turn.read_tokens,
        "ids": list(turn.ids),
    }  # fmt: skip


def _messages(*, objects: bool) -> Iterator[tuple[str, str]]:
    """The messages on standard input, each with its place; blank lines are none.

    Args:
        objects: whether lines are JSON objects if the first one begins as one.
    """
    known: bool | None = None if objects else False
    with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
        for number, line, _ in numbered_lines(stream):
            where = f"stdin:{number}"
            if line is not None and not line.strip():
                continue
            try:
                if known is None:
                    known = line is not None and line.lstrip().startswith(b"{")
                message = _content(parse_line(line), where) if known else _text(line)
            except BadRow as bad:
                raise DataError(str(bad), where=where) from None
            yield where, message


def _text(line: bytes | None) -> str:
    if line is None:
        raise BadRow("too_long", f"the line is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    return decode(line)


def _content(row: Any, where: str) -> str:
    other = next((key for key in row if key != _KEY), None) if isinstance(row, dict) else None
    if other is not None:
        guess = nearest(other, [_KEY])
        todo = f"did you mean {guess!r}?" if guess else f"a message has a `{_KEY}` alone"
        raise DataError(f"unknown key {other!r}", where=where, todo=todo)
    if not isinstance(row, dict) or not isinstance(row.get(_KEY), str) or not row[_KEY].strip():
        raise DataError(f"not an object with a `{_KEY}`, the text of a message", where=where)
    return str(row[_KEY])
