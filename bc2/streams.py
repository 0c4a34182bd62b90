"""Bytes, lines and JSON out of plain, gzip and zstd files, in bounded memory, or a clear error."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import orjson
import zstandard

from bc2.errors import Bc2Error, DataError, from_os_error

#: No document may be longer (UTF-8 bytes): what holds one document in memory is bounded by it.
MAX_DOCUMENT_BYTES = 1 << 28

#: What can be wrong with a row by itself.
RowFault = Literal[
    "bad_utf8",  # bytes that are not UTF-8
    "bad_json",  # a line that is not JSON
    "not_an_object",  # JSON, but not {...}
    "no_text",  # the text field is missing or null
    "text_not_string",  # the text field holds something else
    "lone_surrogate",  # half a UTF-16 pair, escaped in JSON: not Unicode text
    "too_long",  # longer than `MAX_DOCUMENT_BYTES`
]


class BadRow(Exception):
    """A row that holds no usable text."""

    def __init__(self, reason: RowFault, detail: str):
        super().__init__(detail)
        self.reason: RowFault = reason
        self.detail = detail


#: Compressed bytes given to zstd at once. A block of 4 bytes may hold 128 KiB, so this
#: bounds what one step can expand to (256 MiB, for input made to do so).
_FEED = 1 << 13


class ZstdStream(io.RawIOBase):
    """The contents of every frame of a .zst file, one after another.

    zstandard's own reader takes the end of the file for the end of the frame, so a file
    cut short would read as a shorter one; here it is an error.

    Raises:
        EOFError: the file ends inside a frame.
        zstandard.ZstdError: a frame is damaged.
    """

    def __init__(self, raw: IO[bytes]):
        self._raw = raw
        self._frame: Any = None
        self._rest = b""
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._out and self._step():
            pass
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        self._out = self._out[count:]
        return count

    def _step(self) -> bool:
        """Decompress a little more; False at the end of the file."""
        chunk = self._rest or self._raw.read(_FEED)
        self._rest = b""
        if not chunk:
            if self._frame is not None:
                raise EOFError("the file ends inside a zstd frame")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._out = memoryview(self._frame.decompress(chunk))
        if self._frame.eof:
            self._rest = self._frame.unused_data
            self._frame = None
        return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what is wrong with a file: damaged or cut short (3), missing (3), forbidden (1).

    Of a file that is not this machine's, all is a matter of its file system (3).
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None and not isinstance(error, PermissionError):
            raise _damaged(path, error) from error  # pyarrow's way to say: no Parquet
        if not isinstance(path, Path):
            raise _unreached(path, error) from error
        raise from_os_error(error, f"reading {path}") from error
    except Bc2Error:
        raise
    except Exception as error:  # each file system's own: no common class
        if isinstance(path, Path):
            raise
        raise _unreached(path, error) from error


def first_line(error: Exception) -> str:
    """What a foreign error says, without its details; its class if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"the file is damaged or cut short: {first_line(error)}",
        where=str(path),
        todo="fetch it again, or leave it out of the source",
    )


def _unreached(path: Any, error: Exception) -> DataError:
    return DataError(
        f"cannot read from this file system: {first_line(error)}",
        where=str(path),
        todo="check the address, the network and the credentials; then run the same again",
    )


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file's contents, decompressed as its suffix says (.gz, .zst).

    Raises:
        DataError: it is missing, damaged or cut short.
    """
    with reading(path), ExitStack() as held:
        stream: Any
        if path.suffix in (".gz", ".zst") and path.stat().st_size == 0:
            raise EOFError("the file is empty, which no compressed file is")
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=held.enter_context(path.open("rb")), mode="rb")
        elif path.suffix == ".zst":
            stream = io.BufferedReader(ZstdStream(path.open("rb")), 1 << 17)
        else:
            stream = path.open("rb")
        with stream:
            yield stream


def numbered_lines(
    stream: io.BufferedIOBase, limit: int = MAX_DOCUMENT_BYTES
) -> Iterator[tuple[int, bytes | None, int]]:
    """Lines by number, from 1, without their ends; None for one longer than `limit` bytes.

    Yields:
        (number, line or None, bytes of the line). A byte order mark is not part of line 1.
    """
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        size = len(line)
        if size <= limit or line.endswith(b"\n"):
            yield number, line.rstrip(b"\r\n"), size
            continue
        while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
            size += len(line)
        yield number, None, size


def parse_line(line: bytes | None) -> Any:
    """The JSON value of a line.

    Raises:
        BadRow: too long (None), not UTF-8, or not JSON.
    """
    if line is None:
        raise BadRow("too_long", f"the line is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        text = decode(line)  # Python's own knows more (NaN), and says what is wrong
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("bad_json", f"not JSON: {error}") from None


def decode(data: bytes) -> str:
    """UTF-8 text.

    Raises:
        BadRow: longer than `MAX_DOCUMENT_BYTES`, or not UTF-8.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BadRow("too_long", f"the text is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("bad_utf8", f"not UTF-8: byte {error.start} ({error.reason})") from None
