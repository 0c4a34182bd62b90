"""Sources read row by row, in a fixed order and bounded memory.

Order: sources as the recipe lists them, files by name, rows as they stand. A row that
holds no usable text goes to `Drops.reject`; a file that is damaged always stops the run,
since half a file must not pass for a whole one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from bc2.data import environment
from bc2.data.corpus_config import SourceConfig
from bc2.data.documents import ROWS_NAMED, Document, Drops, SourceFile, SourceRow
from bc2.data.inputs import check_utf8_name, file_layout, source_files
from bc2.data.json_rows import begins_list, check_said_once, list_rows, open_rows
from bc2.data.tables import check_columns, hf_origin, hf_rows, open_parquet
from bc2.errors import DataError, nearest
from bc2.streams import (
    MAX_DOCUMENT_BYTES,
    BadRow,
    decode,
    numbered_lines,
    parse_line,
    without_marks,
)
from bc2.text_encoding import UTF8, find_likely, open_utf8, wide_encoding

#: What to do about a row, or a file, that no recipe names.
_REPAIR = "repair it, or leave it out"
_RECODE = "make UTF-8 of it (iconv -f {} -t UTF-8), or leave it out"


def read_source(source: SourceConfig, drops: Drops) -> Iterator[Document]:
    """The documents of a source, empty texts included, up to its ``max_bytes``.

    Raises:
        DataError: nothing to read, a damaged file, or a malformed row that stops the run.
    """
    lang = source_language(source)
    for row in source_rows(source, drops):
        yield Document.of(row, source.name, lang)


def texts_at(paths: Iterable[str], text_field: str) -> Iterator[str]:
    """The texts of files, folders and globs, one path after another.

    Raises:
        DataError: nothing is there, a damaged file, or a malformed row.
    """
    for document in documents_at(paths, text_field, None):
        yield document.text


def documents_at(
    paths: Iterable[str], text_field: str = "text", lang_field: str | None = "lang"
) -> Iterator[Document]:
    """The documents of files, folders and globs, one path after another, empty texts included.

    Their language is what their row has in `lang_field`, if that is given and there.

    Raises:
        DataError: nothing is there, a damaged file, a malformed row, or a language that is no
            string of Unicode text.
    """
    for path in paths:
        source = source_at(path, text_field)
        drops = Drops(path, "stop", todo=_REPAIR, recode=_RECODE)
        for row in file_rows(source, source_files(source), drops, lang_field):
            yield Document.of(row, path, row.lang)


def source_at(path: str, text_field: str = "text") -> SourceConfig:
    """Files, a folder or a glob that no recipe names.

    Raises:
        DataError: the path is not UTF-8.
    """
    check_utf8_name(path, where=path)
    return SourceConfig(name="texts", path=path, text_field=text_field)


def source_rows(source: SourceConfig, drops: Drops) -> Iterator[SourceRow]:
    """The rows of a source up to its ``max_bytes``; raises as `read_source`."""
    spent = 0
    for row in _rows(source, drops):
        spent += len(row.utf8)
        if source.max_bytes is not None and spent > source.max_bytes:
            return
        yield row


def file_rows(
    source: SourceConfig,
    files: Iterable[SourceFile],
    drops: Drops,
    lang_field: str | None = None,
) -> Iterator[SourceRow]:
    """The rows of some of a source's files, as `source_rows` gives them.

    Args:
        lang_field: read each row's language from here.
    """
    for file in files:
        yield from _FileReading(file, source, drops, lang_field).rows()


def source_language(source: SourceConfig) -> str | None:
    """What the recipe says the language is, or what the environment's text is in."""
    if source.lang is None and source.environment is not None:
        return environment.TEXTS[source.environment].lang
    return source.lang


def _rows(source: SourceConfig, drops: Drops) -> Iterator[SourceRow]:
    if source.hf is not None:
        yield from _hf_rows(source, drops)
    elif source.environment is not None:
        text = environment.TEXTS[source.environment]
        yield from text.rows(source_files(source), drops)
    else:
        yield from file_rows(source, source_files(source), drops)


class _FileReading:
    """Reads the rows of one file of a source."""

    def __init__(
        self, file: SourceFile, source: SourceConfig, drops: Drops, lang_field: str | None
    ):
        self._file = file
        self._field = source.text_field
        self._encoding = source.encoding
        self._drops = drops
        self._lang_field = lang_field
        self._asked = False

    def rows(self) -> Iterator[SourceRow]:
        layout = file_layout(self._file.name)
        if layout == "text":
            return self._text_row()
        return self._parquet_rows() if layout == "parquet" else self._json_rows()

    def _reject(self, bad: BadRow, row: int, size: int) -> None:
        if not self._asked and len(self._drops.rows) < ROWS_NAMED:
            find_likely(bad, self._file.path, self._encoding)
            self._asked = True
        self._drops.reject(bad, str(self._file.path), row, size)

    def _text_row(self) -> Iterator[SourceRow]:
        """The one document of a .txt file; its line ends stay as they are."""
        with open_utf8(self._file.path, self._encoding) as stream:
            data = without_marks(stream.read(MAX_DOCUMENT_BYTES + 1))
        try:
            text = decode(data, self._encoding)
            if self._encoding == UTF8 and wide_encoding(data):  # of English it is valid UTF-8
                raise BadRow("bad_utf8", "not UTF-8: half of its bytes are zeros")
        except BadRow as bad:
            self._reject(bad, 1, len(data))
            return
        yield SourceRow(text, data, self._file.name, 1)

    def _json_rows(self) -> Iterator[SourceRow]:
        """The documents of JSON lines, or of the list that the file is."""
        with open_rows(self._file.path, self._encoding) as stream:
            for number, value, size in self._values(stream):
                try:
                    if isinstance(value, BadRow):
                        raise value
                    text, utf8 = text_of(value, self._field)
                except BadRow as bad:
                    self._reject(bad, number, size)
                    continue
                lang = None
                if self._lang_field is not None:
                    lang = value.get(self._lang_field)
                    _check_language(lang, f"{self._file.path}:{number}")
                yield SourceRow(text, utf8, self._file.name, number, lang or None)

    def _values(self, stream: io.BufferedIOBase) -> Iterator[tuple[int, Any, int]]:
        """The number, value (or why there is none) and bytes of each row; 0 in a list."""
        if begins_list(stream):
            for number, value, _ in list_rows(stream, self._file.path, self._encoding):
                yield number, value, 0
            return
        spelled = json.dumps(self._field, ensure_ascii=False).encode()
        for number, line, size in numbered_lines(stream):
            if line is not None and not line.strip():
                continue  # empty lines are no rows, but lines are numbered with them
            try:
                value = parse_line(line, self._encoding)
                if line is not None and line.count(spelled) > 1:
                    check_said_once(line, self._field)
                yield number, value, size
            except BadRow as bad:
                yield number, bad, size

    def _parquet_rows(self) -> Iterator[SourceRow]:
        import pyarrow as pa

        number = 0
        with open_parquet(self._file) as parquet:
            columns = self._columns(parquet.schema_arrow)
            for batch in parquet.iter_batches(batch_size=64, columns=columns):
                langs = batch.column(columns[1]).to_pylist() if columns[1:] else [None] * len(batch)
                # As bytes, so that one bad row is one bad row, not a failed batch.
                texts = batch.column(self._field).cast(pa.string()).cast(pa.binary()).to_pylist()
                for value, lang in zip(texts, langs, strict=True):
                    number += 1
                    try:
                        text = decode(_present(value, self._field))
                    except BadRow as bad:
                        self._drops.reject(bad, str(self._file.path), number, len(value or b""))
                        continue
                    _check_language(lang, f"{self._file.path}:{number}")
                    yield SourceRow(text, value, self._file.name, number, lang or None)

    def _columns(self, schema: Any) -> list[str]:
        """The column of the text, and that of the language if it is asked for and there."""
        wanted = [self._field]
        if self._lang_field in schema.names and self._lang_field is not None:
            wanted.append(self._lang_field)
        check_columns(schema.names, self._file.path, wanted)
        _check_column(schema, self._field, self._file)
        return wanted


def _check_language(lang: Any, where: str) -> None:
    if lang is not None and not isinstance(lang, str):
        raise DataError(
            f"the language is a {type(lang).__name__}, not a string",
            where=where,
            todo='name it as a string, such as "en", or leave it out',
        )
    try:
        (lang or "").encode()
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
        raise DataError("the language is no Unicode text", where=where, todo="repair it") from error


def _check_column(schema: Any, field: str, file: SourceFile) -> None:
    import pyarrow.types as types

    if field not in schema.names:
        guess = nearest(field, schema.names) or ", ".join(schema.names)
        raise DataError(
            f"no column {field!r}", where=str(file.path), todo=f"set text_field; there is: {guess}"
        )
    kind = schema.field(field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_null(kind):  # written where no row has a text: each of them is a bad row
        return
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DataError(
            f"column {field!r} holds {kind}, not strings",
            where=str(file.path),
            todo="set text_field to a column of strings",
        )


def _hf_rows(source: SourceConfig, drops: Drops) -> Iterator[SourceRow]:
    origin = hf_origin(source)
    for number, row in hf_rows(source):
        try:
            text, utf8 = text_of(row, source.text_field)
        except BadRow as bad:
            drops.reject(bad, f"hf:{origin}", number, 0)
            continue
        yield SourceRow(text, utf8, origin, number)


def text_of(row: Any, field: str) -> tuple[str, bytes]:
    """The text of a row, and its UTF-8 bytes.

    Raises:
        BadRow: the row is no object, or the field is missing, no string or no Unicode text.
    """
    if not isinstance(row, dict):
        raise BadRow("not_an_object", f"the row is a JSON {type(row).__name__}, not an object")
    if field not in row:
        guess = nearest(field, row) or ", ".join(list(row)[:8])
        raise BadRow("no_text", f"no field {field!r} (text_field); there is: {guess}")
    text = _present(row[field], field)
    if not isinstance(text, str):
        raise BadRow("text_not_string", f"field {field!r} holds a {type(text).__name__}")
    try:
        utf8 = text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            "lone_surrogate", f"half a surrogate pair at character {error.start}"
        ) from None
    if len(utf8) > MAX_DOCUMENT_BYTES:
        raise BadRow("too_long", f"the text is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    return text, utf8


def _present(value: Any, field: str) -> Any:
    if value is None:
        raise BadRow("no_text", f"field {field!r} is null")
    return value
