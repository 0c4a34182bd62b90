"""Fold whole texts for comparison: NFKC with case folded, and where each folded character is from.

Folding is that of Unicode's compatibility caseless matching (D146), composed at the end, but
begins with NFKD, so that all four forms of a text are folded alike. It goes over strings: `e` and
U+0301 become é, the ligature ﬁ becomes f and i, ½ becomes 1 and 2, ß becomes ss.

Nearly every character becomes one, whatever stands beside it, so one table look-up folds it. The
others are folded in segments, each a character that combines with nothing before it and those
after it that may combine. NFKC never reaches across the border of a segment.

- Characters that are not displayed (format characters, variation selectors) are left out first.
- Accents that stand alone (`´`), punctuation, `™` and `℠` only separate words, whatever they
  become: they are signs beside a word, not letters of it.
- A segment of more than `_LONGEST` characters is cut, since putting marks in order takes time that
  grows with the square of their number.

Shapes: n characters of a text, f folded characters, s segments, m characters of segments.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Codes = npt.NDArray[np.uint32]
Kinds = npt.NDArray[np.uint8]

#: Kinds of folded characters.
SEPARATOR, WORD, CJK = range(3)
#: Of characters that are not simply looked up: left out; become several; may combine with the
#: character before.
_IGNORED, _EXPANDS, _COMBINES = range(3, 6)

#: These roles fill the lowest bits of an entry of the table, a code point the others.
_ROLE_BITS, _ROLE = np.uint32(3), 7

#: Up to here there are letters; then only private use, until the tags and variation selectors.
_LETTERS, _TAGS, _LAST = 0x323B0, 0xE0000, 0xE01F0

#: Han, kana and their extensions. Hangul is not here, because Korean has spaces between words.
_CJK_RANGES = (
    (0x3005, 0x3008),
    (0x3041, 0x3100),
    (0x31F0, 0x3200),
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, _LETTERS),
)

#: Letters and marks that Unicode calls default ignorable, beside format characters: the grapheme
#: joiner, fillers of Hangul, vowels of Khmer that are not seen, variation selectors.
_NOT_SEEN = (
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0),
    *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)),
)

#: Vowels and final consonants of Hangul, which compose by rule and not by a table.
_JAMO = range(0x1161, 0x1200)

#: Most characters of a segment; Unicode's stream-safe text has at most 30 marks in a row.
_LONGEST = 32


class Segments(NamedTuple):
    """Where characters are from that were folded in segments; all others become one each."""

    where: Ints
    """[s + 1] first folded character of each segment; before them one that is empty, at 0."""
    sizes: Ints
    """[s + 1] folded characters."""
    first: Ints
    """[s + 1] first character of the text."""
    counts: Ints
    """[s + 1] characters of the text."""

    def span(self, at: Ints) -> tuple[Ints, Ints]:
        """The first character that folded characters are from, and one past the last.

        A segment that keeps its length is taken for one character after the other.
        """
        mine = np.searchsorted(self.where, at, "right") - 1
        offset, size, count = at - self.where[mine], self.sizes[mine], self.counts[mine]
        behind = offset >= size
        whole = ~behind & (size != count)
        start = self.first[mine] + np.where(behind, offset - size + count, offset)
        start = np.where(whole, self.first[mine], start)
        return start, np.where(whole, start + count, start + 1)


class Folded(NamedTuple):
    """A folded text."""

    codes: Codes
    """[f] code points."""
    kinds: Kinds
    """[f] SEPARATOR, WORD or CJK."""
    segments: Segments | None = None
    """None if each character becomes one."""
    ignored: Ints | None = None
    """For each character that is left out, how many others are before it; None without any."""

    def span(self, at: Ints) -> tuple[Ints, Ints]:
        """The first character of the text that folded characters are from, and one past the last.

        Args:
            at: indices of folded characters.
        """
        start, stop = (at, at + 1) if self.segments is None else self.segments.span(at)
        if self.ignored is None:
            return start, stop
        last = stop - 1
        start = start + np.searchsorted(self.ignored, start, "right")
        return start, last + np.searchsorted(self.ignored, last, "right") + 1


def fold(text: str) -> str:
    """Fold a string. Nothing is left out, and `™` is letters."""
    once = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFKC", once.casefold())


def folded(text: str) -> Folded:
    """Fold a text, which may hold lone surrogates; lines are folded each by itself.

    Time is linear in the length, whatever the text.
    """
    tables = _tables()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    known = tables.known.take(codes, mode="clip")  # one look-up for both: memory is what takes time
    roles = known.astype(np.uint8) & np.uint8(_ROLE)
    highest = int(roles.max(initial=0))
    if highest < _IGNORED:
        return Folded(known >> _ROLE_BITS, roles)
    seen = roles != _IGNORED
    gone = np.flatnonzero(~seen)
    ignored = gone - np.arange(len(gone)) if len(gone) else None
    known, roles = known[seen], roles[seen]
    if highest == _IGNORED:
        return Folded(known >> _ROLE_BITS, roles, None, ignored)
    letters = _fold_segments(tables, codes[seen], known >> _ROLE_BITS, roles)
    return letters._replace(ignored=ignored)


class _Tables(NamedTuple):
    """What is known of each code point up to `_LAST`."""

    known: Codes
    """The code point that a character becomes if it becomes one, and its role: the kind of that,
    or one of the other three."""
    kinds: Kinds
    """The kind of a folded character."""


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    """Takes a third of a second, once."""
    table = np.arange(_LAST + 1, dtype=np.uint32)
    kinds, roles = np.zeros((2, _LAST + 1), np.uint8)
    seconds = _seconds()
    for code in (*range(_LETTERS), *range(_TAGS, _LAST)):
        category = unicodedata.category(chr(code))
        if category == "Cf":
            roles[code] = _IGNORED
        elif category[0] != "C":
            kinds[code] = WORD if category[0] in "LNM" else SEPARATOR
            roles[code], table[code] = _look_up(chr(code), seconds)
    for first, last in _CJK_RANGES:
        kinds[first:last] = np.where(kinds[first:last] == WORD, CJK, kinds[first:last])
    roles = np.where(roles == WORD, kinds[table], roles)
    roles[list(_NOT_SEEN)] = _IGNORED
    return _Tables((table << _ROLE_BITS) | roles, kinds)


def _look_up(character: str, seconds: frozenset[str]) -> tuple[int, int]:
    """The role of a character, and the code point that it becomes if it becomes one."""
    form = fold(character)
    # U+0345 is a mark that becomes a letter: what it is before counts too.
    if unicodedata.combining(unicodedata.normalize("NFKD", character)[0]) or form[0] in seconds:
        return _COMBINES, ord(character)
    letters = any(unicodedata.category(one)[0] in "LMN" for one in form)
    if letters and not _only_separates(character):
        return (WORD, ord(form)) if len(form) == 1 else (_EXPANDS, ord(character))
    # Its letters or marks must not come back where it is before a mark.
    return SEPARATOR, ord(" ") if letters else ord(character)


def _only_separates(character: str) -> bool:
    """Whether a character with a form of letters or marks is none of a word."""
    category = unicodedata.category(character)
    sign = category == "So" and unicodedata.decomposition(character).startswith("<super>")
    return sign or category == "Sk" or category[0] in "PZ"


def _seconds() -> frozenset[str]:
    """The characters that NFC may combine with the one before them, or put in order with it."""
    found = set(map(chr, _JAMO))
    for code in range(_LETTERS):
        if unicodedata.combining(chr(code)):
            found.add(chr(code))
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(chr(int(parts[1], 16)))
    return frozenset(found)


def _fold_segments(tables: _Tables, codes: Codes, simple: Codes, roles: Kinds) -> Folded:
    """Fold characters of which none is ignored and some are not simply looked up.

    Args:
        codes, roles: of the characters.
        simple: what they become if they are looked up.
    """
    joins = roles == _COMBINES
    joins[:1] = False
    joins[1:] &= codes[:-1] != ord("\n")
    touched = roles >= _EXPANDS
    touched[:-1] |= joins[1:]
    mine = np.flatnonzero(touched)  # [m]
    begins = _cut(~joins[mine])
    counts = np.diff(begins, append=len(mine))  # [s]
    texts = (
        np.where(roles < _EXPANDS, simple, codes)[mine]
        .tobytes()
        .decode("utf-32-le", "surrogatepass")
    )
    pieces = _pieces(texts, begins, counts)
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    first = mine[begins]
    where = first + np.cumsum(sizes - counts) - (sizes - counts)
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    inside = np.repeat(where, sizes) + within  # [m]

    out = np.empty(len(codes) - len(mine) + len(inside), np.uint32)
    kinds = np.empty(len(out), np.uint8)
    outside = np.ones(len(out), bool)
    outside[inside] = False
    out[outside] = simple[~touched]
    kinds[outside] = roles[~touched]
    encoded = "".join(pieces).encode("utf-32-le", "surrogatepass")
    out[inside] = np.frombuffer(encoded, np.uint32)
    kinds[inside] = tables.kinds.take(out[inside], mode="clip")
    columns = (np.insert(column, 0, 0) for column in (where, sizes, first, counts))
    return Folded(out, kinds, Segments(*columns))


def _cut(begins: npt.NDArray[np.bool_]) -> Ints:
    """[s] where segments begin, if they begin at least where `begins` is true [m]."""
    first = np.flatnonzero(begins)
    within = np.arange(len(begins)) - np.repeat(first, np.diff(first, append=len(begins)))
    return np.flatnonzero(within % _LONGEST == 0)


def _pieces(text: str, begins: Ints, counts: Ints) -> list[str]:
    """Fold each segment of a text; those that are equal, once."""
    known: dict[str, str] = {}
    found = []
    for first, stop in zip(begins.tolist(), (begins + counts).tolist(), strict=True):
        segment = text[first:stop]
        piece = known.get(segment)
        if piece is None:
            known[segment] = piece = fold(segment)
        found.append(piece)
    return found
