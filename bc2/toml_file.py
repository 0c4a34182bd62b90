"""A TOML file that knows on which line each of its keys is written."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bc2.errors import RecipeError

#: Where a value stands: ("corpus", "sources", 2, "path").
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class TomlFile:
    """A file's text and its parsed tables."""

    path: Path
    text: str
    data: Mapping[str, Any]

    def line_of(self, key: KeyPath) -> int | None:
        """The line (from 1) where `key` is written, or None if this file has not got it.

        tomllib gives no positions, so the file is parsed again line by line: the key
        begins on the first line that follows the last prefix which parses without it.
        """
        if not _has(self.data, key):
            return None
        lines = self.text.splitlines()
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
    """Read and parse a file.

    Raises:
        RecipeError: not UTF-8, or not TOML, with line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return TomlFile(path, text, tomllib.loads(text))
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8: byte {error.start}", where=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        where = _place(path, place.rstrip(")"), text)
        raise RecipeError(f"broken TOML: {what}", where=where) from None


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
