"""A TOML file that knows on which line each of its keys is written."""

from __future__ import annotations

import codecs
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bc2.errors import RecipeError

#: No recipe is as long, bytes; a device may be endless.
MAX_BYTES = 16 << 20

#: Names of descriptors that this process was started with.
_DESCRIPTOR = re.compile(r"/dev/std(?P<std>in|out|err)|/(dev|proc/self)/fd/(?P<number>[0-9]{1,6})")

#: What a file in another encoding begins with; UTF-32 before UTF-16, which begins it.
_OTHER_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}

#: Where a value stands: ("corpus", "sources", 2, "path").
KeyPath = tuple[str | int, ...]

#: Tables and lists inside each other, at most: more is no recipe, and what reads it recurses.
MOST_DEPTH = 32

#: No number of a recipe needs more bits than a seed.
_INTEGER_BITS = 64


def dotted(key: KeyPath) -> str:
    """A place as a person writes it: ``corpus.sources[2].path``."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in key).lstrip(".")


def check_values(value: Any, key: KeyPath, where: Callable[[KeyPath], str]) -> None:
    """Check what no setting of any type can be, here and in all tables and lists below.

    Raises:
        RecipeError: text with NUL or with bytes that are no UTF-8, a number of more than 64 bits
            or one that is not finite, or too many tables inside each other.
    """
    if len(key) > MOST_DEPTH:
        place = _printable(dotted(key[:2]))
        raise RecipeError(
            f"{place} has more than {MOST_DEPTH} tables and lists inside each other",
            where=where(key[:2]),
        )
    if isinstance(value, Mapping):
        for name, below in value.items():
            check_values(name, key, where)
            check_values(below, (*key, name), where)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            check_values(below, (*key, number), where)
    else:
        wrong = _wrong(value)
        if wrong:
            raise RecipeError(f"{_printable(dotted(key))}: {wrong}", where=where(key))


def _wrong(value: Any) -> str | None:
    """Why a value that is no table and no list is no setting."""
    if isinstance(value, str):
        if "\0" in value:
            return "text with a NUL character"
        return None if _is_unicode(value) else "text that is not UTF-8"
    if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
        return f"a number of more than {_INTEGER_BITS} bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


@dataclass(frozen=True)
class TomlFile:
    """A file's text and its parsed tables."""

    path: Path
    text: str
    data: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Its folder; of what can be read only once, the working directory."""
        return self.path.parent if is_lasting(self.path) else Path()

    @property
    def stem(self) -> str:
        """The file's name without its suffix; of a descriptor, what it is."""
        if _DESCRIPTOR.fullmatch(str(self.path)) is None:
            return self.path.stem
        return "stdin" if self.path.stem in ("stdin", "0") else "pipe"

    def line_of(self, key: KeyPath) -> int | None:
        """The line (from 1) where `key` is written, or None if this file has not got it.

        tomllib gives no positions, so the file is parsed again line by line: the key
        begins on the first line that follows the last prefix which parses without it.
        """
        if not _has(self.data, key):
            return None
        lines = self.text.split("\n")  # a string may hold other separators
        start = 1
        for count in range(1, len(lines) + 1):
            try:
                prefix = tomllib.loads("\n".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                continue
            if _has(prefix, key):
                return start
            start = count + 1
        return start


def read_toml(path: Path) -> TomlFile:
    """Read and parse a file, pipe or descriptor; a byte order mark is no part of it.

    Raises:
        RecipeError: it cannot be read, is not UTF-8, or not TOML, with line and column.
    """
    text = _decode(path, read_source(path))
    try:
        read = TomlFile(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        where = _place(path, place.rstrip(")"), text)
        raise RecipeError(f"broken TOML: {what}", where=where) from None
    except ValueError:  # of Python's limit to the digits of a number
        raise RecipeError("broken TOML: a number of thousands of digits", where=str(path)) from None
    except RecursionError:
        what = "broken TOML: too many tables and lists inside each other"
        raise RecipeError(what, where=str(path)) from None
    check_values(read.data, (), lambda key: f"{path}:{read.line_of(key) or 1}")
    return read


def is_lasting(path: Path) -> bool:
    """Whether a path names a file that another process, and a later one, can read too."""
    return path.is_file() and _DESCRIPTOR.fullmatch(str(path)) is None


def read_source(path: Path) -> bytes:
    """The content of a file that a person gave; of a pipe, what came when it was first read.

    Raises:
        RecipeError: a pipe that cannot be read, see `read_passing`.
    """
    passing = path.exists() and not path.is_dir() and not is_lasting(path)
    return read_passing(path) if passing else path.read_bytes()


def read_passing(path: Path) -> bytes:
    """The content of what can be read only once: a pipe, a device, a descriptor.

    Raises:
        RecipeError: it cannot be read, is empty, or is longer than `MAX_BYTES`.
    """
    try:
        data = _read_once(path, path.stat().st_ino)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RecipeError(f"cannot read it: {reason}", where=str(path)) from None
    if not data:
        todo = "see whether what writes it has failed"
        raise RecipeError("nothing came from it", where=str(path), todo=todo)
    if len(data) > MAX_BYTES:
        raise RecipeError(f"longer than {MAX_BYTES >> 20} MiB: no recipe", where=str(path))
    return data


@cache
def _read_once(path: Path, _: int) -> bytes:
    """Read it for the first time, or say again what was read."""
    match = _DESCRIPTOR.fullmatch(str(path))
    if match is None:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    # Not by its name: a socket has none, and a pipe of another user may not be opened again.
    number = match["number"] or ("in", "out", "err").index(match["std"])
    with open(int(number), "rb", closefd=False) as stream:
        return stream.read(MAX_BYTES + 1)


def _decode(path: Path, data: bytes) -> str:
    """Raises: RecipeError: not UTF-8."""
    todo = "save it as UTF-8"
    for name, marks in _OTHER_MARKS.items():
        if data.startswith(marks):
            raise RecipeError(f"{name}, not UTF-8", where=str(path), todo=todo)
    if b"\0" in data[:2]:  # every other byte, for text of the first 128 characters
        raise RecipeError("UTF-16 or binary, not UTF-8", where=str(path), todo=todo)
    mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.start + mark
        line = data.count(b"\n", 0, byte) + 1
        raise RecipeError(f"not UTF-8: byte {byte}", where=f"{path}:{line}", todo=todo) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place(path: Path, place: str, text: str) -> str:
    """``file:line:column`` from tomllib's ``line 3, column 5`` or ``end of document``."""
    digits = [int(word.strip(",")) for word in place.split() if word.strip(",").isdigit()]
    if len(digits) != 2:
        return f"{path}:{len(text.splitlines())}"
    return f"{path}:{digits[0]}:{digits[1]}"


def _has(data: Any, key: KeyPath) -> bool:
    for part in key:
        inside = isinstance(data, Mapping) and part in data
        item = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not inside and not item:
            return False
        data = data[part]
    return True
