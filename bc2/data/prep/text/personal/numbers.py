"""Where numbers stand in a text, and their characters as ASCII.

Full-width digits and signs, and the dashes and spaces of typesetting, are read as their ASCII
characters. Each is one character, so places stay the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_WIDE = {ord("０") + i: ord("0") + i for i in range(10)}
_SIGNS = str.maketrans(
    "（）＋－．‐‑‒–—−／\u00a0\u2002\u2003\u2009\u202f\u3000Ｘｘ", "()+-.------/      Xx"
)
_ASCII = {**_WIDE, **_SIGNS}

_MARKS = r" ().+/\-（）＋－．‐-—−／\u00a0\u2002\u2003\u2009\u202f\u3000"

#: Seven digits or more, with at most three signs between two of them.
_RUN = re.compile(rf"[0-9０-９](?:[{_MARKS}]{{0,3}}+[0-9０-９]){{6,}}+")
_ASCII_RUN = re.compile(r"[0-9](?:[ ().+/\-]{0,3}+[0-9]){6,}+")

#: What is read beside the digits: enough for signs, and for words in front of a unit.
_BESIDE = 12


class Numbers(NamedTuple):
    """A run of numbers in a text."""

    text: str
    """The whole text, as it is."""
    near: str
    """The run and a few characters beside it, in ASCII where there is an equal."""
    offset: int
    """Where `near` begins in `text`."""
    start: int
    """Where the run, with signs in front of it, begins in `near`."""
    end: int
    """Where the run, with a check letter after it, ends in `near`."""

    def matches(self, pattern: re.Pattern[str], least: int = 7) -> Iterator[re.Match[str]]:
        """Matches in the run, if it may have `least` digits; lookarounds see what is beside it."""
        at = self.start if self.end - self.start >= least else self.end
        while match := pattern.search(self.near, at, len(self.near)):
            if match.start() >= self.end:
                return
            yield match
            at = max(match.end(), match.start() + 1)


def numbers_of(text: str) -> list[Numbers]:
    """All runs of numbers, in the order of the text."""
    pattern = _ASCII_RUN if text.isascii() else _RUN
    return [_read(text, match.start(), match.end()) for match in pattern.finditer(text)]


def _read(text: str, start: int, end: int) -> Numbers:
    offset = max(0, start - _BESIDE)
    near = text[offset : end + _BESIDE].translate(_ASCII)
    first = start - offset
    while first > 0 and near[first - 1] in "+( ":
        first -= 1
    return Numbers(text, near, offset, first, end - offset + 1)


def digits_of(written: str) -> str:
    """The digits of a number, without what separates them."""
    return "".join(filter(str.isdigit, written))
