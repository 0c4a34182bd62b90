"""MinHash signatures and their bands, and the exact sets of shingles that they estimate.

A shingle is a number of words in a row (`bc2.data.prep.text.word_hashes`); a document of fewer
words is one shingle. The similarity of two documents is the Jaccard similarity of their sets of
shingles: |intersection| / |union|.

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
    """Bands, and rows (hashes) of a band: the most rows that reach `recall` at `threshold`.

    More rows give fewer candidates that fail. Hashes that do not fill a band are not computed.

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
    """Every shingle of texts, as a 64-bit hash (two collide with a chance of one in 2^64).

    Args:
        texts: texts, or the results of `words_of`.
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
        # A text of fewer words ends before: the next words belong to the next text.
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
    # Sorted in place, then compared all at once: np.unique for each text takes twice as long.
    for one in np.split(values, ends[:-1]):
        one.sort()
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    new[(ends - counts)[counts > 0]] = True
    places = np.concatenate(([0], np.cumsum(new)))
    return values[new], places[np.concatenate(([0], ends))]


def overlap(one: UInt64, two: UInt64) -> tuple[int, int]:
    """Sizes of the intersection and the union of two sets, each sorted and distinct."""
    both = np.concatenate((one, two))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared, len(both) - shared


# -- signatures ----------------------------------------------------------------------------


def signatures(texts: pa.Array, hashes: int, shingle: int) -> UInt32:
    """[N, hashes] MinHash values: the chance that two texts agree in one is their similarity.

    One hash of a shingle gives a place and a number; each place keeps its smallest number. For
    places that stay empty all shingles are hashed again, up to eight times, and at last with a
    hash of that place alone. So a place holds the smallest (round, number) of a text's shingles,
    and two texts agree there if the smallest of both together is in both.

    Args:
        texts: texts, or the results of `words_of`; a text without words has empty places only.
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
    """[N, hashes] of the shingles of each place (the upper half of a hash) the least lower half."""
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
    """[texts, bands] one number for each band: a hash of its rows and of its own number."""
    values = np.tile(np.arange(bands, dtype=np.uint64), (len(signature), 1))
    if not values.size:
        return values.view(np.int64)
    cut = signature[:, : bands * rows].reshape(len(signature), bands, rows)
    for row in range(rows):
        values = mix(values) ^ cut[:, :, row]
    return mix(values).view(np.int64)


def fold(values: Int64) -> Int64:
    """[texts] a hash of each row of numbers."""
    result = np.zeros(len(values), np.uint64)
    for column in values.T:
        result = mix(result ^ column.view(np.uint64))
    return result.view(np.int64)
