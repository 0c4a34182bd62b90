"""The rows of a JSON file, in bounded memory: its lines, or the elements of the list that it is.

A key that stands twice in an object is an error: readers that take the last of them, as most do,
lose what the first one said.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bc2.errors import DataError
from bc2.streams import MAX_DOCUMENT_BYTES, BadRow, decode, numbered_lines, open_bytes

#: Characters of a list that are read at once; more where one element is longer.
_CHUNK = 1 << 20

#: As near to the end of what was read, an error may be one of reading too little: ``-Infinity``.
_CUT = 16

_BOM = b"\xef\xbb\xbf"


class JsonRow(NamedTuple):
    """A row by its number, from 1: its value, or why it has none."""

    number: int
    """Its line, or its place in the list."""
    value: Any
    fault: BadRow | None = None


def json_rows(path: Path) -> Iterator[JsonRow]:
    """The rows of a JSON file; lines that are empty are none.

    Raises:
        DataError: it is missing or damaged, or its list is broken: what follows is lost then.
    """
    is_list = _first_byte(path) == b"["
    with open_bytes(path) as stream:
        if is_list:
            yield from _ListReader(stream, path).rows()
            return
        for number, line, _ in numbered_lines(stream):
            if line is None or line.strip():
                yield _line_row(number, line)


def _first_byte(path: Path) -> bytes:
    """The first byte that is no white space."""
    first = b""
    with open_bytes(path) as stream:  # once more than to read it: some streams cannot go back
        while not first and (begin := stream.read(1 << 10)):
            first = begin.removeprefix(_BOM).lstrip()[:1]
    return first


def _line_row(number: int, line: bytes | None) -> JsonRow:
    try:
        if line is None:
            raise BadRow("too_long", f"the line is longer than {MAX_DOCUMENT_BYTES:,} bytes")
        return JsonRow(number, _DECODER.decode(decode(line)))
    except BadRow as bad:
        return JsonRow(number, None, bad)
    except (ValueError, RecursionError) as error:
        return JsonRow(number, None, BadRow("bad_json", f"not JSON: {error}"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRow("bad_json", f"the key {twice!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


class _ListReader:
    """Reads a list element by element, holding little more than one of them."""

    def __init__(self, stream: io.BufferedIOBase, path: Path):
        self._stream = stream
        self._path = path
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._ended = False
        self._number = 0

    def rows(self) -> Iterator[JsonRow]:
        self._read(_CHUNK)
        self._expect("[")
        if self._next() == "]":
            self._at += 1
            return self._check_end()
        while True:
            self._number += 1
            yield self._element()
            if self._expect(",]") == "]":
                return self._check_end()

    def _element(self) -> JsonRow:
        if self._next() == "]":
            raise self._broken("a comma stands before its end")
        chunk = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not _may_be_cut(error):
                    ends = self._ended and _may_be_cut(error)
                    raise self._broken("the file ends in it" if ends else error.msg) from None
            except BadRow as bad:
                raise self._broken(bad.detail) from None
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error)) from None
            else:
                # A number that ends where the chunk ends may go on: 1e5 may be cut into 1 and e5.
                whole = end < len(self._text) - _CUT or not isinstance(value, int | float)
                if self._ended or whole:
                    self._at = end
                    return JsonRow(self._number, value)
            if len(self._text) - self._at > MAX_DOCUMENT_BYTES:
                raise self._broken(f"an element of more than {MAX_DOCUMENT_BYTES:,} characters")
            self._read(chunk)
            chunk *= 2

    def _read(self, count: int) -> None:
        """Read more, and forget what was taken."""
        data = self._stream.read(count)
        self._ended = not data
        try:
            more = self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._broken(f"not UTF-8: {error.reason}") from None
        self._text, self._at = self._text[self._at :] + more, 0

    def _next(self) -> str:
        """The next character that is no white space, which is not taken; "" at the end."""
        while True:
            rest = len(self._text)
            while self._at < rest and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < rest or self._ended:
                return self._text[self._at : self._at + 1]
            self._read(_CHUNK)

    def _expect(self, either: str) -> str:
        found = self._next()
        if not found or found not in either:
            raise self._broken(f"{' or '.join(either)} expected" if found else "the file ends")
        self._at += 1
        return found

    def _check_end(self) -> None:
        if self._next():
            raise self._broken("something follows the list")

    def _broken(self, why: str) -> DataError:
        return DataError(
            f"the JSON list is broken: {why[:1].lower()}{why[1:]}",
            where=f"{self._path}:{max(self._number, 1)}",
            todo="repair the file, or write it as JSON lines, of which one may be skipped",
        )


def _may_be_cut(error: json.JSONDecodeError) -> bool:
    """Whether more text could mend it."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc) - _CUT
