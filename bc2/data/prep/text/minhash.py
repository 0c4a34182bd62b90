"""MinHash signatures, their bands, and the exact sets of shingles that they stand for.

A shingle is so many words in a row (`bc2.data.prep.text.word_hashes`); a document of fewer
words is one shingle, all of it. Two documents are as near as their sets of shingles: Jaccard
similarity, shared / united.

MinHash after Broder, "On the resemblance and containment of documents" (1997); as fast as one
hash of each shingle allows after Dahlgaard, Knudsen and Thorup, "Fast Similarity Sketching"
(2017, arXiv 1704.04370); bands after Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", section 3.4.

N = texts, S = shingles of all texts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bc2.data.mixture import mix
from bc2.data.prep.text.word_hashes import hashed_words
from bc2.data.prep.text.word_hashes import text_slices as text_slices
from bc2.data.prep.text.word_hashes import words_of as words_of
from bc2.errors import RecipeError

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]

#: Times that shingles are spread over places before an empty place takes the least of all.
_ROUNDS = 8
_EMPTY = np.uint32(0xFFFFFFFF)
_HALF = np.uint64(32)


# -- bands ---------------------------------------------------------------------------------


def recall_at(similarity: float, bands: int, rows: int) -> float:
    """The chance that two documents of a Jaccard similarity share a band: 1 - (1 - s^r)^b."""
    return float(1 - (1 - similarity**rows) ** bands)


def bands_for(threshold: float, recall: float, hashes: int) -> tuple[int, int]:
    """Bands, and rows (hashes) a band: the most rows that reach `recall` at `threshold`.

    More rows mean fewer candidates in vain. Hashes that fill no band are not computed.

    Raises:
        RecipeError: not even one row a band reaches it.
    """
    for rows in range(hashes, 0, -1):
        if recall_at(threshold, hashes // rows, rows) >= recall:
            return hashes // rows, rows
    best = recall_at(threshold, hashes, 1)
    raise RecipeError(
        f"{hashes} hashes cannot find {recall:.1%} of the pairs at Jaccard {threshold}",
        where="corpus.near",
        todo=f"give more hashes, or a recall of at most {best:.3f}",
    )


# -- shingles ------------------------------------------------------------------------------


def shingles(texts: pa.Array, shingle: int) -> tuple[UInt64, Int64]:
    """Every shingle of texts, as 64 bits (two differ but for one chance in 2^64).

    Args:
        texts: or what `words_of` made of them.
        shingle: words in a shingle.

    Returns:
        [S] shingles, one text after the other; [N] how many each text has.
    """
    words, counts = hashed_words(texts)
    ends = np.cumsum(counts)
    first, *factors = _odd(shingle)
    values = words * first
    begins = np.ones(len(words), bool)
    room = np.empty_like(words)
    for number, factor in enumerate(factors, 1):
        ahead = np.multiply(words[number:], factor, out=room[: max(0, len(words) - number)])
        # A text of fewer words ends before: those of the next are none of its own.
        short = (ends - counts)[(counts > 0) & (counts <= number)]
        ahead[short[short < len(ahead)]] = 0
        values[: len(ahead)] += ahead
        begins[(ends - number)[counts > number]] = False
    return mix(values[begins]), np.where(counts > 0, np.maximum(counts - shingle + 1, 1), 0)


def shingle_sets(texts: pa.Array, shingle: int) -> tuple[UInt64, Int64]:
    """The distinct shingles of texts; arguments as of `shingles`.

    Returns:
        all sets one after the other, each sorted; and the [N + 1] places of their ends.
    """
    values, counts = shingles(texts, shingle)
    ends = np.cumsum(counts)
    # In place, then all at once: np.unique of each takes twice as long in all.
    for one in np.split(values, ends[:-1]):
        one.sort()
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    new[(ends - counts)[counts > 0]] = True
    places = np.concatenate(([0], np.cumsum(new)))
    return values[new], places[np.concatenate(([0], ends))]


def overlap(one: UInt64, two: UInt64) -> tuple[int, int]:
    """Shared and united shingles of two sets, each sorted and distinct."""
    both = np.concatenate((one, two))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared, len(both) - shared


# -- signatures ----------------------------------------------------------------------------


def signatures(texts: pa.Array, hashes: int, shingle: int) -> UInt32:
    """[N, hashes] numbers: the chance that two texts share one is how near they are.

    A shingle's hash says at which place it stands, and with what number: the least of a place
    stays. In places that are left empty all shingles are tried again by another hash, eight
    times at most, and at last by a hash of that place alone. So a place holds the least, by
    round and number, of a text's shingles: it is the same in two texts if the least of both
    together is in both.

    Args:
        texts: or what `words_of` made of them; all places of one without words stay empty.
        shingle: words in a shingle.
    """
    values, counts = shingles(texts, shingle)
    found = np.full((len(counts), hashes), _EMPTY, np.uint32)
    rows = np.flatnonzero(counts)
    for _ in range(_ROUNDS):
        before = found[rows]
        found[rows] = np.where(before == _EMPTY, _spread(values, counts[rows], hashes), before)
        unfilled = (found[rows] == _EMPTY).any(axis=1)
        values = mix(values[np.repeat(unfilled, counts[rows])])
        rows = rows[unfilled]
    _fill(found, rows, values, counts[rows])
    return found


def has_words(signature: UInt32) -> npt.NDArray[np.bool_]:
    """[N] whether a text has words, by its signature [N, hashes]."""
    filled: npt.NDArray[np.bool_] = (signature != _EMPTY).any(axis=1)
    return filled


def _spread(values: UInt64, counts: Int64, hashes: int) -> UInt32:
    """[N, hashes] each shingle at the place its upper half says, the least lower half staying."""
    upper = values >> _HALF
    upper *= np.uint64(hashes)
    upper >>= _HALF
    places = upper.view(np.int64)
    places += np.repeat(np.arange(len(counts)) * hashes, counts)
    least = np.full(len(counts) * hashes, _EMPTY, np.uint32)
    np.minimum.at(least, places, values.astype(np.uint32))
    return least.reshape(len(counts), hashes)


def _fill(found: UInt32, rows: Int64, values: UInt64, counts: Int64) -> None:
    """Give each empty place of some rows of `found` the least hash of all their shingles."""
    for place, factor in enumerate(_odd(found.shape[1])):
        empty = found[rows, place] == _EMPTY
        if empty.any():
            mine = values[np.repeat(empty, counts)] * factor >> _HALF
            begins = np.cumsum(counts[empty]) - counts[empty]
            found[rows[empty], place] = np.minimum.reduceat(mine, begins)


def _odd(count: int) -> UInt64:
    """[count] multipliers."""
    return mix(np.arange(count, dtype=np.uint64)) | np.uint64(1)


def band_values(signature: npt.NDArray[np.uint32], bands: int, rows: int) -> Int64:
    """[texts, bands] one number a band: a hash of its rows and of which band it is."""
    values = np.tile(np.arange(bands, dtype=np.uint64), (len(signature), 1))
    if not values.size:
        return values.view(np.int64)
    cut = signature[:, : bands * rows].reshape(len(signature), bands, rows)
    for row in range(rows):
        values = mix(values) ^ cut[:, :, row]
    return mix(values).view(np.int64)


def fold(values: Int64) -> Int64:
    """[texts] one number for each row of numbers: equal rows, equal numbers."""
    result = np.zeros(len(values), np.uint64)
    for column in values.T:
        result = mix(result ^ column.view(np.uint64))
    return result.view(np.int64)
