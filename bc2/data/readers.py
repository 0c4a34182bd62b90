"""Sources read row by row, in a fixed order and bounded memory.

Order: sources as the recipe lists them, files by name, rows as they stand. A row that
holds no usable text goes to `Drops.reject`; a file that is damaged always stops the run,
since half a file must not pass for a whole one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bc2.data import environment
from bc2.data.corpus_config import SourceConfig
from bc2.data.documents import Document, Drops, SourceFile, SourceRow
from bc2.data.inputs import file_layout, source_files
from bc2.data.tables import hf_origin, hf_rows, open_parquet
from bc2.errors import DataError, nearest
from bc2.streams import (
    MAX_DOCUMENT_BYTES,
    BadRow,
    decode,
    numbered_lines,
    open_bytes,
    parse_line,
)


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
    for path in paths:
        source = SourceConfig(name="texts", path=path, text_field=text_field)
        for document in read_source(source, Drops(path, "stop")):
            yield document.text


def documents_at(
    paths: Iterable[str], text_field: str = "text", lang_field: str = "lang"
) -> Iterator[Document]:
    """The documents of files, folders and globs, one path after another, empty texts included.

    Their language is what their row has in `lang_field`, if anything.

    Raises:
        DataError: nothing is there, a damaged file, a malformed row, or a language that is no
            string of Unicode text.
    """
    for path in paths:
        source = SourceConfig(name="texts", path=path, text_field=text_field)
        drops = Drops(path, "stop", todo="repair it, or leave it out")
        for row in file_rows(source, source_files(source), drops, lang_field):
            yield Document.of(row, path, row.lang)


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
        yield from _file_rows(file, source.text_field, drops, lang_field)


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


def _file_rows(
    file: SourceFile, field: str, drops: Drops, lang_field: str | None
) -> Iterator[SourceRow]:
    layout = file_layout(file.name)
    if layout == "text":
        yield from _text_row(file, drops)
    elif layout == "lines":
        yield from _line_rows(file, field, drops, lang_field)
    else:
        yield from _parquet_rows(file, field, drops, lang_field)


def _text_row(file: SourceFile, drops: Drops) -> Iterator[SourceRow]:
    """The one document of a .txt file; its line ends stay as they are."""
    with open_bytes(file.path) as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    try:
        data = data.removeprefix(b"\xef\xbb\xbf")
        text = decode(data)
    except BadRow as bad:
        drops.reject(bad, str(file.path), 1, len(data))
        return
    yield SourceRow(text, data, file.name, 1)


def _line_rows(
    file: SourceFile, field: str, drops: Drops, lang_field: str | None
) -> Iterator[SourceRow]:
    """The documents of JSON lines; empty lines are no rows, but lines are numbered with them."""
    with open_bytes(file.path) as stream:
        for number, line, size in numbered_lines(stream):
            if line is not None and not line.strip():
                continue
            try:
                row = parse_line(line)
                text, utf8 = text_of(row, field)
            except BadRow as bad:
                drops.reject(bad, str(file.path), number, size)
                continue
            lang = None if lang_field is None else row.get(lang_field)
            _check_language(lang, f"{file.path}:{number}")
            yield SourceRow(text, utf8, file.name, number, lang or None)


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


def _parquet_rows(
    file: SourceFile, field: str, drops: Drops, lang_field: str | None
) -> Iterator[SourceRow]:
    import pyarrow as pa

    number = 0
    with open_parquet(file) as parquet:
        _check_column(parquet.schema_arrow, field, file)
        has_lang = lang_field is not None and lang_field in parquet.schema_arrow.names
        columns = [field, lang_field] if has_lang else [field]
        for batch in parquet.iter_batches(batch_size=64, columns=columns):
            langs = batch.column(lang_field).to_pylist() if has_lang else [None] * len(batch)
            # As bytes, so that one bad row is one bad row, not a failed batch.
            values = batch.column(field).cast(pa.string()).cast(pa.binary()).to_pylist()
            for value, lang in zip(values, langs, strict=True):
                number += 1
                try:
                    text = decode(_present(value, field))
                except BadRow as bad:
                    drops.reject(bad, str(file.path), number, len(value or b""))
                    continue
                _check_language(lang, f"{file.path}:{number}")
                yield SourceRow(text, value, file.name, number, lang or None)


def _check_column(schema: Any, field: str, file: SourceFile) -> None:
    import pyarrow.types as types

    if field not in schema.names:
        guess = nearest(field, schema.names) or ", ".join(schema.names)
        raise DataError(
            f"no column {field!r}", where=str(file.path), todo=f"set text_field; there is: {guess}"
        )
    kind = schema.field(field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
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
