"""Bytes, lines and JSON out of plain, gzip and zstd files, in bounded memory, or a clear error."""

from __future__ import annotations

import codecs
import errno
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
    "bad_encoding",  # bytes that are not of the encoding that the source names
    "bad_json",  # a line that is not JSON
    "not_an_object",  # JSON, but not {...}
    "no_text",  # the text field is missing or null
    "text_not_string",  # the text field holds something else
    "lone_surrogate",  # half a UTF-16 pair, escaped in JSON: not Unicode text
    "too_long",  # longer than `MAX_DOCUMENT_BYTES`
]


class BadRow(Exception):
    """A row that holds no usable text."""

    likely: str | None = None
    """The encoding that its file is likely to be in, where that was asked for."""

    def __init__(self, reason: RowFault, detail: str):
        super().__init__(detail)
        self.reason: RowFault = reason
        self.detail = detail


#: Compressed bytes given to zstd at once. A block of 4 bytes may hold 128 KiB, so this
#: bounds what one step can expand to (256 MiB, for input made to do so).
_FEED = 1 << 13


#: The longest window that zstd has: memory for so much text, if a frame is as long.
_LONGEST_WINDOW = 1 << 31

#: The most bytes of a frame's header: see RFC 8878, section 3.1.1.
_HEADER = 18


class _UnreadFrame(Exception):
    """A zstd frame that is whole and that no reader here can read."""

    def __init__(self, what: str, todo: str):
        super().__init__(what)
        self.what = what
        self.todo = todo


class ZstdStream(io.RawIOBase):
    """The contents of every frame of a .zst file, one after another.

    zstandard's own reader takes the end of the file for the end of the frame, so a file
    cut short would read as a shorter one; here it is an error. Any window that zstd makes is
    read; one of `--long=31` takes up to 2 GiB of memory.

    Raises:
        EOFError: the file ends inside a frame.
        zstandard.ZstdError: a frame is damaged.
        _UnreadFrame: a frame needs a dictionary, or more memory than there is.
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
            while len(chunk) < _HEADER and (more := self._raw.read(_HEADER)):
                chunk += more
            self._frame = _frame(chunk)
        self._out = memoryview(_decompressed(self._frame, chunk))
        if self._frame.eof:
            self._rest = self._frame.unused_data
            self._frame = None
        return True


def _frame(begin: bytes) -> Any:
    """What decompresses the frame that begins so."""
    try:
        header = zstandard.get_frame_parameters(begin)
        reader = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW).decompressobj()
    except zstandard.ZstdError as error:
        if "too much memory" in str(error):  # how the library says it of a header
            raise _UnreadFrame(
                f"it was compressed with a window of more than {_LONGEST_WINDOW:,} bytes",
                "compress it again with `zstd --long=31` or a shorter window",
            ) from error
        raise
    if header.dict_id:
        raise _UnreadFrame(
            f"it was compressed with a dictionary, whose ID is {header.dict_id}",
            "decompress it with `zstd -d -D DICTIONARY`, and give what comes out",
        )
    return reader


def _decompressed(frame: Any, chunk: bytes) -> bytes:
    try:
        data: bytes = frame.decompress(chunk)
    except (zstandard.ZstdError, MemoryError) as error:
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            raise _UnreadFrame(
                "there is not enough memory for the window that it was compressed with",
                "compress it again without --long, or read it where there is more memory",
            ) from error
        raise
    return data


#: Errors of paths at which there can be no file.
_NO_SUCH_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what is wrong with a file: damaged or cut short (3), missing (3), forbidden (1).

    Of a file that is not this machine's, all is a matter of its file system (3).
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise _damaged(path, error) from error
    except _UnreadFrame as error:
        raise DataError(error.what, where=str(path), todo=error.todo) from error
    except OSError as error:
        if error.errno is None and not isinstance(error, PermissionError):
            raise _damaged(path, error) from error  # pyarrow's way to say: no Parquet
        if not isinstance(path, Path):
            raise _unreached(path, error) from error
        if error.errno in _NO_SUCH_PATH:
            what = (error.strerror or str(error)).lower()
            raise DataError(f"no such file: {what}", where=str(path), todo="check it") from error
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
        (number, line or None, bytes of the line). Byte order marks before a line are no part of
        it: they are at the beginning of a file, and inside it where several were joined.
    """
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        line = without_marks(line)
        size = len(line)
        if size <= limit or line.endswith(b"\n"):
            yield number, line.rstrip(b"\r\n"), size
            continue
        while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
            size += len(line)
        yield number, None, size


def without_marks(data: bytes) -> bytes:
    """UTF-8 without the byte order marks at its beginning."""
    while data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
    return data


def parse_line(line: bytes | None, encoding: str = "utf-8") -> Any:
    """The JSON value of a line.

    Args:
        encoding: see `decode`.

    Raises:
        BadRow: too long (None), not UTF-8, or not JSON.
    """
    if line is None:
        raise BadRow("too_long", f"the line is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        text = decode(line, encoding)  # Python's own knows more (NaN), and says what is wrong
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        detail = f"not JSON: {error}"
        if line.strip() in (b"{", b"["):
            kind = "an object" if line.strip() == b"{" else "a list"
            detail = f"{kind} over several lines, and each line is to be a row"
        raise BadRow("bad_json", detail) from None


def decode(data: bytes, encoding: str = "utf-8") -> str:
    """UTF-8 text.

    Args:
        encoding: what the file is in, if `bc2.text_encoding` made UTF-8 of it.

    Raises:
        BadRow: longer than `MAX_DOCUMENT_BYTES`, or not UTF-8.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BadRow("too_long", f"the text is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            place = len(data[: error.start].decode()) + 1
            raise BadRow("bad_encoding", f"not {encoding}: character {place}") from None
        raise BadRow("bad_utf8", f"not UTF-8: byte {error.start} ({error.reason})") from None
