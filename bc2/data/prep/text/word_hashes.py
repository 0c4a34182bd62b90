"""Split texts into words and hash every word, in order to compare documents.

A text is converted to NFKD and lower case. Letters, marks and numbers form words; all other
characters separate words, so code is compared without its operators. A Chinese character, a kana
or a mark between U+3000 and U+9FFF, or in planes 2 and 3, is a word by itself. Other scripts
without spaces (Thai, Khmer) are not split: a whole phrase counts as one word, so fewer
near-duplicates are found in them.

Nearly every character becomes one letter or a separator, whatever its neighbours are, so one table
look-up converts all of them. A text with other characters (é, ½, 한) is normalised first. The
words of a text and the words of its `words_of` are the same, so every function here takes either.

Shapes:
    N  texts      L  letters and separators of all texts      W  words of all texts
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import chain, islice, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bc2.data.prep.text.rolling_hash import rolling
from bc2.data.prep.text.unicode_forms import MARKS, pieces

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

#: UTF-8 bytes of text that are split at a time: few enough for the processor's cache. Splitting
#: takes about 50 times as much memory.
SLICE_BYTES = 1 << 19

#: Words that are hashed at a time.
_BLOCK = 1 << 16

_SPACE, _BREAK = 0x20, 0
#: Letters, marks and numbers form words; other characters separate them.
_WORD, _MARK = r"[\p{L}\p{M}\p{N}]", r"\p{M}"
#: Code points are classified a plane at a time; even that is faster than compiling the pattern.
_PLANE_BITS = 16
#: Entries of the table for code points that are not classified yet; and for those that become more
#: than one letter, or a mark, which normalisation may move.
_UNKNOWN, _SEVERAL = 0xFFFFFFFF, 0xFFFFFFFE


class Letters(NamedTuple):
    """The letters of texts, with separators between words."""

    codes: UInt32
    """[L] code points; _BREAK for a separator."""
    ends: Int64
    """[N + 1] where texts begin and end."""


class Words(NamedTuple):
    """The hashes of the words of texts."""

    hashes: UInt64
    """[W] equal words have equal hashes."""
    counts: Int64
    """[N] number of words of each text."""


def text_slices(texts: pa.ChunkedArray, limit: int = SLICE_BYTES) -> Iterator[pa.Array]:
    """Divide a column into runs of texts: at most `limit` UTF-8 bytes, or a single text."""
    for chunk in texts.chunks:
        ends = np.cumsum(pc.binary_length(chunk.cast(pa.large_binary())).to_numpy())
        first = 0
        while first < len(chunk):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + limit, "right")))
            yield chunk.slice(first, last - first)
            first = last


def words_of(texts: pa.Array) -> pa.Array:
    """The words of each text, joined by single spaces; empty where it has none."""
    codes, ends = letters_of(texts)
    pairs = np.full((len(codes), 2), _SPACE, np.uint32)  # a letter, and a space before it
    pairs[:, 1] = codes
    kept = np.stack((_begins(codes, ends), codes != _BREAK), axis=1)
    spaced = (pairs[a:b][kept[a:b]].tobytes().decode("utf-32-le") for a, b in pairwise(ends))
    return pa.array([text[1:] for text in spaced], pa.large_string())


def hashed_words(texts: pa.Array) -> Words:
    """The hash of every word of texts, one text after the other."""
    codes, ends = letters_of(texts)
    places = np.flatnonzero(_begins(codes, ends))
    counts = np.diff(np.searchsorted(places, ends))
    hashes = np.zeros(len(places), np.uint64)
    bounds = np.append(places, len(codes))
    for first in range(0, len(places), _BLOCK):
        # A span ends where the next word begins: separators are zero and add nothing to its hash.
        mine = bounds[first : first + _BLOCK + 1]
        sums = rolling(codes[mine[0] : mine[-1]])
        hashes[first : first + _BLOCK] = sums.spans(mine[:-1] - mine[0], mine[1:] - mine[0])
    return Words(hashes, counts)


def letters_of(texts: pa.Array) -> Letters:
    """The letters of texts; a text with a character that has no single letter is normalised."""
    table = _Table.shared()
    sizes = pc.utf8_length(texts).to_numpy().astype(np.int64)
    ends = np.concatenate(([0], np.cumsum(sizes)))
    codes = table.letters(_code_points(texts))
    several = np.flatnonzero(codes == _SEVERAL)
    if not len(several):
        return Letters(codes, ends)
    which = np.unique(np.searchsorted(ends, several, "right") - 1)
    plain = _decomposed(texts.take(pa.array(which)), several)
    sizes[which] = pc.utf8_length(plain).to_numpy()
    found = _code_points(plain)
    letters = table.letters(found)
    # Only marks are left, and normalisation has put them in order.
    letters = np.where(letters == _SEVERAL, found, letters)
    pieces = np.split(codes, np.stack((ends[which], ends[which + 1]), axis=1).ravel())
    pieces[1::2] = np.split(letters, np.cumsum(sizes[which])[:-1])
    return Letters(np.concatenate(pieces), np.concatenate(([0], np.cumsum(sizes))))


def _decomposed(texts: pa.Array, several: Int64) -> pa.Array:
    """NFKD of texts, given the places of all characters that have no single letter."""
    if (several[MARKS:] - several[:-MARKS] > MARKS).all():
        return pc.utf8_normalize(texts, form="NFKD")
    # Perhaps a run of marks, which takes time that grows with the square of its length.
    cut = [pieces(text) for text in texts.to_pylist()]
    flat = pa.array(chain.from_iterable(cut), pa.large_string())
    plain = iter(pc.utf8_normalize(flat, form="NFKD").to_pylist())
    return pa.array(["".join(islice(plain, len(each))) for each in cut], pa.large_string())


class _Table:
    """The letter of each code point.

    A plane is classified when a text first has one of its characters.
    """

    def __init__(self) -> None:
        self._letters = np.full(0x110000, _UNKNOWN, np.uint32)

    @staticmethod
    @cache
    def shared() -> _Table:
        """The one table of this process."""
        return _Table()

    def letters(self, codes: UInt32) -> UInt32:
        """[L] the letter of each code point, _BREAK, or _SEVERAL."""
        found = self._letters.take(codes)
        unknown = found == _UNKNOWN
        if unknown.any():
            for plane in np.unique(codes[unknown] >> _PLANE_BITS).tolist():
                self._look_up(plane << _PLANE_BITS, (plane + 1) << _PLANE_BITS)
            found = self._letters.take(codes)
        return found

    def _look_up(self, first: int, last: int) -> None:
        codes = np.arange(first, last, dtype=np.uint32)
        codes = codes[(codes < 0xD800) | (codes > 0xDFFF)]  # no characters
        one_each = pa.array(map(chr, codes.tolist()), pa.large_string())
        # Of pyarrow's normalisation forms only NFD and NFKD are right: 25.0 does not compose.
        plain = pc.utf8_lower(pc.utf8_normalize(one_each, form="NFKD"))
        single = _mask(pc.equal(pc.utf8_length(plain), 1)) & ~_matches(plain, _MARK)
        letters = np.full(len(codes), _SEVERAL, np.uint32)
        letters[single] = _code_points(plain.filter(pa.array(single)))
        letters[~_matches(plain, _WORD)] = _BREAK
        self._letters[codes] = letters


def _begins(codes: UInt32, ends: Int64) -> Bool:
    """[L] whether a word begins at each letter."""
    is_letter = codes != _BREAK
    alone = (codes - np.uint32(0x3000) < 0x7000) | (codes - np.uint32(0x20000) < 0x20000)
    goes_on = is_letter & ~alone
    begins: Bool = is_letter.copy()
    begins[1:] &= ~(goes_on[1:] & goes_on[:-1])
    firsts = ends[:-1][ends[:-1] < ends[1:]]
    begins[firsts] = is_letter[firsts]
    return begins


def _code_points(texts: pa.Array) -> UInt32:
    """The code points of all texts, one text after the other."""
    texts = texts.cast(pa.large_string())
    _, ends, data = texts.buffers()
    if data is None or not len(texts):
        return np.zeros(0, np.uint32)
    places = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text = str(data[int(places[0]) : int(places[-1])], "utf-8")
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _matches(texts: pa.Array, pattern: str) -> Bool:
    return _mask(pc.match_substring_regex(texts, pattern))


def _mask(values: pa.Array) -> Bool:
    mask: Bool = values.to_numpy(zero_copy_only=False)
    return mask
