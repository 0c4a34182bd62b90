"""The one record that flows through data preparation, and why a record may be dropped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from bc2.errors import DataError
from bc2.streams import BadRow, RowFault

#: Every reason for which a row or a document can be dropped.
Reason = Literal[
    RowFault,
    "too_short",  # fewer characters than [corpus] min_characters
    "duplicate",  # the same text was read before
]

#: Malformed rows that are named, of each source.
ROWS_NAMED = 20


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from.

    Attributes:
        id: the first 128 bits of the SHA-256 of the UTF-8 text, in hex.
        text: the text, never empty, always encodable as UTF-8.
        source: name of the source in the recipe.
        lang: language as the recipe states it, or None.
        origin_file: name of the file, relative to the source's path.
        origin_row: line or row in that file, from 1; 1 for a file that is one document.
        meta: what later stages note about the document (scores, clusters).
    """

    id: str
    text: str
    source: str
    lang: str | None
    origin_file: str
    origin_row: int
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, row: SourceRow, source: str, lang: str | None) -> Document:
        """A document as it is read, with the id that its text gives it."""
        return cls(text_id(row.utf8), row.text, source, lang, row.file, row.row)


def text_id(utf8: bytes) -> str:
    """The id of a text: 32 hex digits of its SHA-256."""
    return hashlib.sha256(utf8).hexdigest()[:32]


class SourceFile(NamedTuple):
    """A file of a source: its name relative to the source, and where it is.

    On another file system than this machine's `path` is a `upath.UPath`, which reads alike.
    """

    name: str
    path: Any


class SourceRow(NamedTuple):
    """A text as a reader finds it: file and row (from 1) are its origin."""

    text: str
    utf8: bytes
    """The text once more, since its size and its hash are asked for."""
    file: str
    row: int
    lang: str | None = None
    """Language as the row states it, where that was asked for."""

    @classmethod
    def of(cls, text: str, file: str, row: int) -> SourceRow:
        """A row of a text that was no bytes before."""
        return cls(text, text.encode(), file, row)


@dataclass
class Drops:
    """What one source lost, by reason: documents and UTF-8 bytes."""

    source: str
    malformed: Literal["stop", "skip"]
    documents: Counter[Reason] = field(default_factory=Counter)
    bytes: Counter[Reason] = field(default_factory=Counter)
    rows: list[str] = field(default_factory=list)
    """The first malformed rows, as FILE:ROW REASON."""
    todo: str = 'repair it, or set corpus.malformed = "skip" to count and skip such rows'
    """What to do about a malformed row that stops the run."""
    recode: str = 'set encoding = "{}" in the source'
    """What to do about a file in another encoding, whose name replaces the braces."""

    def drop(self, reason: Reason, size: int) -> None:
        """Count one document of `size` bytes as dropped."""
        self.documents[reason] += 1
        self.bytes[reason] += size

    def reject(self, bad: BadRow, file: str, row: int, size: int) -> None:
        """Count a malformed row, or stop.

        Raises:
            DataError: the recipe says ``malformed = "stop"``.
        """
        if self.malformed == "stop":
            likely = f"; the file is likely in {bad.likely}" if bad.likely else ""
            raise DataError(
                f"malformed row in source {self.source!r}: {bad.detail}{likely}",
                where=f"{file}:{row}",
                todo=self.recode.format(bad.likely) if bad.likely else self.todo,
            )
        self.drop(bad.reason, size)
        if len(self.rows) < ROWS_NAMED:
            likely = f" (likely {bad.likely})" if bad.likely else ""
            self.rows.append(f"{file}:{row} {bad.reason}{likely}")

    def facts(self) -> dict[str, dict[str, int]]:
        """``{reason: {"documents": n, "bytes": b}}``, sorted by reason."""
        return {
            reason: {"documents": count, "bytes": self.bytes[reason]}
            for reason, count in sorted(self.documents.items())
        }
