"""The rows of a JSON file, in bounded memory: its lines, or the elements of the list that it is.

A key that stands twice in an object is an error: readers that take the last of them, as most do,
lose what the first one said.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from bc2.errors import DataError
from bc2.streams import MAX_DOCUMENT_BYTES, BadRow, decode, numbered_lines, without_marks
from bc2.text_encoding import UTF8, likely_encoding, open_utf8

#: Characters of a list that are read at once; more where one element is longer.
_CHUNK = 1 << 20

#: As near to the end of what was read, an error may be one of reading too little: ``-Infinity``.
_CUT = 16

#: A byte order mark.
_MARK = "\ufeff"


class JsonRow(NamedTuple):
    """A row by its number, from 1: its value, or why it has none."""

    number: int
    """Its line, or its place in the list."""
    value: Any
    fault: BadRow | None = None


def json_rows(path: Path, encoding: str = UTF8) -> Iterator[JsonRow]:
    """The rows of a JSON file; lines that are empty are none.

    Args:
        encoding: see `bc2.text_encoding.open_utf8`.

    Raises:
        DataError: it is missing or damaged, or its list is broken: what follows is lost then.
    """
    with open_rows(path, encoding) as stream:
        if begins_list(stream):
            yield from list_rows(stream, path, encoding)
            return
        for number, line, _ in numbered_lines(stream):
            if line is None or line.strip():
                yield _line_row(number, line, encoding)


@contextmanager
def open_rows(path: Path, encoding: str = UTF8) -> Iterator[io.BufferedIOBase]:
    """As `open_utf8`, for `begins_list`."""
    with open_utf8(path, encoding) as stream:
        # GzipFile has a peek, and so do all other files of this machine.
        yield stream if hasattr(stream, "peek") else io.BufferedReader(cast(io.RawIOBase, stream))


def begins_list(stream: io.BufferedIOBase) -> bool:
    """Whether a stream of `open_rows`, of which nothing was read, is a list and not lines."""
    first: bytes = cast(io.BufferedReader, stream).peek(1)
    return without_marks(first).lstrip()[:1] == b"["


def list_rows(stream: io.BufferedIOBase, path: Path, encoding: str = UTF8) -> Iterator[JsonRow]:
    """The elements of a list, which is all that a stream holds.

    Raises:
        DataError: the list is broken.
    """
    return _ListReader(stream, path, encoding).rows()


def check_said_once(line: bytes, key: str) -> None:
    """Raise BadRow if the object that a line of JSON is has a key twice, or is nested too deep."""
    objects: list[list[str]] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        objects.append([name for name, _ in pairs])
        return dict(pairs)

    try:
        json.loads(line, object_pairs_hook=note)
    except (ValueError, RecursionError) as error:  # as deep as only orjson goes
        raise BadRow("bad_json", f"not JSON: {error}") from None
    if objects[-1:] and objects[-1].count(key) > 1:  # the outermost object ends last
        raise BadRow("bad_json", f"the key {key!r} stands twice in one object")


def _line_row(number: int, line: bytes | None, encoding: str) -> JsonRow:
    try:
        if line is None:
            raise BadRow("too_long", f"the line is longer than {MAX_DOCUMENT_BYTES:,} bytes")
        return JsonRow(number, _DECODER.decode(decode(line, encoding)))
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

    def __init__(self, stream: io.BufferedIOBase, path: Path, encoding: str):
        self._stream = stream
        self._path = path
        self._encoding = encoding
        self._utf8 = codecs.getincrementaldecoder(UTF8)()
        self._text = ""
        self._at = 0
        self._ended = False
        self._number = 0

    def rows(self) -> Iterator[JsonRow]:
        self._read(_CHUNK)
        self._skip_marks()
        yield from self._list()
        while self._skip_marks() and self._next():  # files were joined
            yield from self._list()
        if self._next():
            raise self._broken("something follows the list")

    def _skip_marks(self) -> bool:
        """Pass over byte order marks; whether there was one."""
        found = False
        while self._next() == _MARK:
            self._at += 1
            found = True
        return found

    def _list(self) -> Iterator[JsonRow]:
        self._expect("[")
        if self._next() == "]":
            self._at += 1
            return
        while True:
            self._number += 1
            yield self._element()
            if self._expect(",]") == "]":
                return

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
            why = f"UTF-8: {error.reason}" if self._encoding == UTF8 else self._encoding
            raise self._broken(f"not {why}") from None
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

    def _broken(self, why: str) -> DataError:
        likely = likely_encoding(self._path)
        todo = "repair the file, or write it as JSON lines, of which one may be skipped"
        if likely not in (None, self._encoding):
            todo = (
                f"it is likely in {likely}: make UTF-8 of it, or name it in the source (encoding)"
            )
        return DataError(
            f"the JSON list is broken: {why[:1].lower()}{why[1:]}",
            where=f"{self._path}:{max(self._number, 1)}",
            todo=todo,
        )


def _may_be_cut(error: json.JSONDecodeError) -> bool:
    """Whether more text could mend it."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc) - _CUT
