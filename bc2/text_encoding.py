"""Text files that are not UTF-8: read as the encoding that is named, or told by how they look."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bc2.errors import DataError, nearest
from bc2.streams import BadRow, open_bytes

#: What files are read as where nothing else is named; a byte order mark is no part of the text.
UTF8 = "utf-8"

#: Python's names of encodings that are no character sets of files.
_NO_CHARACTER_SETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined",
                                "unicode-escape", "utf-7", "mbcs", "oem"})  # fmt: skip

#: The byte order marks of the encodings that do not say themselves which byte comes first.
_MARKS = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}

_CHUNK = 1 << 16

#: Half of a surrogate pair, which stands for bytes that could not be decoded: never valid UTF-8.
_MARKED = "\udcff"


def named_encoding(name: str) -> str:
    """The one name by which an encoding is known here, such as ``gbk`` for ``CP936``.

    Raises:
        ValueError: it is none that text files are in.
    """
    known = _lookup(name)
    if known is None:
        likely = nearest(name.lower(), _LIKELY) or ", ".join(_LIKELY)
        raise ValueError(f"should name an encoding of text, such as {likely}")
    return known


def _lookup(name: str) -> str | None:
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):  # ValueError: a name that holds a NUL
        return None
    if not getattr(found, "_is_text_encoding", True) or found.name in _NO_CHARACTER_SETS:
        return None
    return UTF8 if found.name == "utf-8-sig" else found.name


@contextmanager
def open_utf8(path: Path, encoding: str = UTF8) -> Iterator[io.BufferedIOBase]:
    """A text file's contents as UTF-8, decompressed as its suffix says.

    Bytes that are not of `encoding` become bytes that are not UTF-8, so that whoever decodes a
    row finds them in it; see `bc2.streams.decode`.

    Args:
        encoding: as of `named_encoding`. UTF-8 is passed on as it is.

    Raises:
        DataError: it is missing, damaged or cut short; or it has no byte order mark and needs one.
    """
    with open_bytes(path) as stream:
        if encoding == UTF8:
            yield stream
            return
        with io.BufferedReader(_Utf8Stream(stream, path, encoding), _CHUNK) as decoded:
            yield decoded


class _Utf8Stream(io.RawIOBase):
    """The UTF-8 bytes of a stream in another encoding, decoded strictly."""

    def __init__(self, stream: io.BufferedIOBase, path: Path, encoding: str):
        codecs.register_error("bc2-mark", _mark)
        self._stream = stream
        self._path = path
        self._decoder = codecs.getincrementaldecoder(encoding)("bc2-mark")
        self._marks = _MARKS.get(encoding, ())
        self._encoding = encoding
        self._out = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out and not self._ended:
            data = self._stream.read(_CHUNK)
            self._check_mark(data)
            self._ended = not data
            text = self._decoder.decode(data, self._ended)
            self._out = memoryview(text.encode("utf-8", "surrogatepass"))
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        self._out = self._out[count:]
        return count

    def _check_mark(self, data: bytes) -> None:
        if data and self._marks and not data.startswith(self._marks):
            raise DataError(
                f"no byte order mark, so {self._encoding} does not say which byte comes first",
                where=str(self._path),
                todo=f'name the encoding as "{self._encoding}-le" or "{self._encoding}-be"',
            )
        self._marks = ()


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _MARKED, error.end


# -- guessing ------------------------------------------------------------------------------

#: The encodings that are told, by charset-normalizer's names: as they are named here.
_LIKELY = {
    "utf-16": "utf_16", "utf-16-le": "utf_16_le", "utf-16-be": "utf_16_be",
    "utf-32": "utf_32", "utf-32-le": "utf_32_le", "utf-32-be": "utf_32_be",
    "gb18030": "gb18030", "big5": "big5", "cp932": "cp932", "euc_jp": "euc_jp",
    "cp949": "cp949", "koi8-r": "koi8_r",
    "cp1250": "cp1250", "cp1251": "cp1251", "cp1252": "cp1252",
}  # fmt: skip
_NAMES = {known: name for name, known in _LIKELY.items()}

#: Those in which letters beyond ASCII stand among letters of ASCII.
_LATIN = ("cp1250", "cp1252")

#: UTF-16 and UTF-32 that begin without a mark.
_UNMARKED = ("utf-16-be", "utf-16-le", "utf-32-be", "utf-32-le")

#: The letters, ideographs and signs of most text, and the least share of them in any text.
_USUAL = re.compile(
    r"[\t\n\r -~\xa0-\u052f\u2000-\u206f\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]"
)
_MOSTLY = 0.95

_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1f]")

#: Bytes that are looked through for lines that are not UTF-8, and bytes of these that are enough.
_SEARCHED, _ENOUGH = 1 << 23, 1 << 14

#: Bytes beyond ASCII below which any guess is as good as another.
_FEWEST = 16

#: What two-byte encodings write characters as. ASCII, of which markup is made, misleads.
_BEYOND_ASCII = re.compile(rb"(?:[\x80-\xff][\x30-\xff]?)+")

_AFTER_LETTER = re.compile(rb"(?<=[A-Za-z])[\x80-\xff](?![\x80-\xff])")

#: Hiragana are at least so much of Japanese text, and no other text has them.
_HIRAGANA = re.compile("[\u3041-\u3096]")
_JAPANESE = 0.2

#: The most of a guesser's measure of disorder: so much of code and tables is not prose.
_DISORDER = 0.6


def likely_encoding(path: Path) -> str | None:
    """What a file that is not UTF-8 is likely to be in, as of `named_encoding`; None: no telling.

    It is decided by the beginning of the file and of what in it is not UTF-8.
    """
    with open_bytes(path) as stream:
        first = stream.read(_CHUNK)
        guess = wide_encoding(first)
        return guess or _guess(_not_utf8(first, stream))


def find_likely(bad: BadRow, path: Path, encoding: str = UTF8) -> None:
    """Note in a bad row what its file is likely to be in, if the row is bad because of that.

    Args:
        encoding: what the file was read as.
    """
    if bad.reason in ("bad_utf8", "bad_encoding", "bad_json"):
        found = likely_encoding(path)
        # What is not JSON may be UTF-8 all the same, but for ASCII with zeros between.
        if found != encoding and (bad.reason != "bad_json" or (found or "").startswith("utf-")):
            bad.likely = found


def wide_encoding(first: bytes) -> str | None:
    """UTF-16 or UTF-32, if a file that begins with `first` is so: by its mark or by its zeros."""
    for name in ("utf-32", "utf-16"):  # in this order: a mark of UTF-32 begins like one of UTF-16
        if first.startswith(_MARKS[name]):
            return name
    # Without a mark by its zeros, which are half of ASCII there and in no other text.
    sample = first[: 1 << 12]
    if not sample.count(0) or (
        _is_utf8(sample) and len(_CONTROLS.findall(sample)) * 5 < len(sample)
    ):
        return None
    share, name = max((_usual_share(sample, name), name) for name in _UNMARKED)
    return name if share > _MOSTLY else None


def _usual_share(sample: bytes, encoding: str) -> float:
    """How many of the characters are usual ones, if `sample` is in this encoding; 0 if not."""
    whole = len(sample) // 4 * 4 or len(sample)
    try:
        text = sample[:whole].decode(encoding)
    except UnicodeDecodeError:
        return 0.0
    return len(_USUAL.findall(text)) / max(1, len(text))


def _not_utf8(first: bytes, stream: io.BufferedIOBase) -> bytes:
    """The first lines that are not UTF-8 and not damaged UTF-8, joined."""
    found = b""
    left, data = _SEARCHED, first
    while data and left > 0 and len(found) < _ENOUGH:
        data += stream.readline(_CHUNK)  # whole lines, as a rule
        for line in data.splitlines():
            if not _is_utf8(line):
                found += line + b"\n"
        left -= len(data)
        data = stream.read(_CHUNK)
    return found  # not cut, which might leave half of a character


def _is_utf8(line: bytes) -> bool:
    """Whether a line is UTF-8, but for a few bytes of it."""
    text = line.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    return not bad or sum(char > "\x7f" for char in text) > 5 * bad


def _guess(lines: bytes) -> str | None:
    beyond = sum(byte > 0x7F for byte in lines)
    sample, among = b" ".join(_BEYOND_ASCII.findall(lines)), list(_NAMES)
    if len(lines) > 4 * beyond < 16 * len(_AFTER_LETTER.findall(lines)):
        sample, among = lines, list(_LATIN)
    if len(sample) < _FEWEST:
        return None
    if (japanese := _japanese(lines)) is not None:
        return japanese
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=among, threshold=_DISORDER).best()
    return None if best is None else _NAMES.get(best.encoding)


def _japanese(lines: bytes) -> str | None:
    """The encoding in which lines are Japanese: a guesser may take long vowels for disorder."""
    for name in ("cp932", "euc_jp"):
        try:
            text = lines.decode(name)
        except UnicodeDecodeError:
            continue
        beyond = sum(not char.isascii() for char in text)
        if len(_HIRAGANA.findall(text)) >= _JAPANESE * beyond > 0:
            return name
    return None
