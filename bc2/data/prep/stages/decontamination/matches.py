"""The matches with benchmarks, which are the lines of ``contamination.jsonl`` in a corpus.

This module defines the format of that file: the stage writes it, and reports read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from bc2.errors import DataError, from_os_error

#: Name of the file in a corpus.
CONTAMINATION = "contamination.jsonl"

#: The fields of `BenchmarkMatch` as columns of a part.
MATCHES = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("source", pa.string()),
        pa.field("lang", pa.string()),
        pa.field("benchmark", pa.string()),
        pa.field("item", pa.string()),
        pa.field("how", pa.string()),
        pa.field("words", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("shared", pa.list_(pa.int64())),
        pa.field("benchmark_text", pa.string()),
        pa.field("done", pa.string()),
    ]
)


class BenchmarkMatch(BaseModel):
    """A document and a text of a benchmark with the same words.

    Keys that a later version adds are ignored.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    """The document's file, relative to the source."""
    row: int
    source: str
    lang: str | None
    benchmark: str
    item: str
    """FILE:ROW of the benchmark, or lm-eval's TASK/SPLIT:NUMBER."""
    how: str
    """"text": the document has the whole text of the item; "ngram": consecutive words of it."""
    words: int
    """Words and CJK characters of the first matching place."""
    text: str
    """The document's text around that place."""
    shared: tuple[int, int]
    """Where the matching place begins and ends in `text`."""
    benchmark_text: str
    done: str
    """"dropped", "cut" or "reported"."""

    @property
    def document(self) -> str:
        """The document, as SOURCE FILE:ROW."""
        return f"{self.source} {self.file}:{self.row}"

    @property
    def found_by(self) -> str:
        """How the match was found, as text for reports."""
        return f"{'whole text' if self.how == 'text' else 'part'}, {self.words:,} words"

    def pieces(self) -> tuple[str, str, str]:
        """The document's text before, at and after the matching place."""
        start, stop = self.shared
        return self.text[:start], self.text[start:stop], self.text[stop:]


def read_matches(path: Path) -> Iterator[BenchmarkMatch]:
    """The matches of a `contamination.jsonl`, in the order of documents.

    Raises:
        DataError: the file cannot be read, or a line is not a match.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                yield _match(line, f"{path}:{number}")
    except OSError as error:
        raise from_os_error(error, "reading the matches with benchmarks") from error


def _match(line: bytes, where: str) -> BenchmarkMatch:
    try:
        return BenchmarkMatch.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"this is not a match with a benchmark: {first['msg']}",
            where=where,
            todo="make the corpus again with `bc2 data prep`",
        ) from error
