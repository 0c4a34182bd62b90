"""Unicode's normalisation forms, in time that grows with the length of a text, whatever it is.

Libraries put the marks after a letter in order by moving each past others: 100,000 marks in a row
take half a minute. Text that means something has a few; Unicode's stream-safe text has at most 30.
Longer runs are converted in pieces here, so that the order between two pieces stays as it was.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

#: Most marks that are converted at once.
MARKS = 64

#: Half-width letters that NFKD makes marks of.
_LETTERS = (0xFF9E, 0xFF9F)


def nfc(text: str) -> str:
    """Convert a text to NFC."""
    return "".join(unicodedata.normalize("NFC", piece) for piece in pieces(text))


def pieces(text: str) -> list[str]:
    """Cut a text inside of runs of marks, after each `MARKS` of them; nearly all stay whole."""
    if len(text) <= MARKS or text.isascii():
        return [text]
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    marks = np.flatnonzero(_is_mark().take(codes))
    begins = np.flatnonzero(np.diff(marks, prepend=-2) != 1)
    lengths = np.diff(begins, append=len(marks))
    within = np.arange(len(marks)) - np.repeat(begins, lengths)
    cuts: list[int] = marks[(within > 0) & (within % MARKS == 0)].tolist()
    return [text[first:last] for first, last in pairwise([0, *cuts, len(text)])]


@cache
def _is_mark() -> npt.NDArray[np.bool_]:
    """Whether each code point is a mark, or becomes one. Takes a tenth of a second, once."""
    found = np.zeros(0x110000, bool)
    found[[c for c in range(0x110000) if unicodedata.category(chr(c))[0] == "M"]] = True
    found[list(_LETTERS)] = True
    return found
