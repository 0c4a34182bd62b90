"""MinHash signatures and their bands, and the exact sets of shingles.

A shingle is a fixed number of consecutive words (`bc2.data.prep.text.word_hashes`); a document of
fewer words is one shingle. The similarity of two documents is the Jaccard similarity of their sets
of shingles, |intersection| / |union|, which signatures estimate.

MinHash is from Broder, "On the resemblance and containment of documents" (1997). Computing a whole
signature from about one hash of each shingle is from Dahlgaard, Knudsen and Thorup, "Fast
Similarity Sketching" (2017, arXiv 1704.04370). Bands are from Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4.

Shapes:
    N  texts      S  shingles of all texts
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bc2.data.mixture import mix
from bc2.data.prep.text.word_hashes import hashed_words
from bc2.errors import RecipeError

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]

#: Rounds in which shingles are distributed over the places of a signature. A place that is still
#: empty then gets the smallest of all hashes.
_ROUNDS = 8
_EMPTY = np.uint32(0xFFFFFFFF)
_HALF = np.uint64(32)


# -- bands ---------------------------------------------------------------------------------


def recall_at(similarity: float, bands: int, rows: int) -> float:
    """The probability that two documents of similarity s share a band: 1 - (1 - s^rows)^bands."""
    return float(1 - (1 - similarity**rows) ** bands)


def recall_advice(what: str, best: float) -> str:
    """What to do if signatures cannot reach a recall: words that can be followed.

    Args:
        what: signatures are made of.
        best: the recall that they can reach.
    """
    reached = math.floor(best * 1000) / 1000
    lower = f", or a recall of at most {reached:.3f}" if reached else ""
    return f"give a higher threshold, more {what}{lower}"


def bands_for(threshold: float, recall: float, hashes: int) -> tuple[int, int]:
    """The number of bands, and of rows (hashes) of a band: the most rows that reach the recall.

    With more rows, fewer candidates are below the threshold. Hashes that do not fill a band are
    not computed.

    Args:
        threshold: Jaccard similarity.
        recall: probability of finding a pair at the threshold.
        hashes: of a signature.

    Raises:
        RecipeError: bands of one row do not reach the recall either.
    """
    for rows in range(hashes, 0, -1):
        if recall_at(threshold, hashes // rows, rows) >= recall:
            return hashes // rows, rows
    best = recall_at(threshold, hashes, 1)
    raise RecipeError(
        f"{hashes} hashes cannot find {recall:.1%} of the pairs at Jaccard {threshold}",
        where="corpus.near.threshold",
        todo=recall_advice("hashes", best),
    )


# -- shingles ------------------------------------------------------------------------------


def shingles(texts: pa.Array, shingle: int) -> tuple[UInt64, Int64]:
    """All shingles of texts, as 64-bit hashes (two different ones collide with probability 2^-64).

    Args:
        texts: texts, or the results of `words_of`.
        shingle: words in a shingle.

    Returns:
        The shingles, one text after the other [S]; and how many each text has [N].
    """
    words, counts = hashed_words(texts)
    ends = np.cumsum(counts)
    first, *factors = _odd(shingle)
    values = words * first
    begins = np.ones(len(words), bool)
    room = np.empty_like(words)
    for number, factor in enumerate(factors, 1):
        ahead = np.multiply(words[number:], factor, out=room[: max(0, len(words) - number)])
        # In a text with fewer words, the next words already belong to the next text.
        short = (ends - counts)[(counts > 0) & (counts <= number)]
        ahead[short[short < len(ahead)]] = 0
        values[: len(ahead)] += ahead
        begins[(ends - number)[counts > number]] = False
    return mix(values[begins]), np.where(counts > 0, np.maximum(counts - shingle + 1, 1), 0)


def shingle_sets(texts: pa.Array, shingle: int) -> tuple[UInt64, Int64]:
    """The sets of distinct shingles of texts; arguments as for `shingles`.

    Returns:
        The sets, one after the other, each sorted; and where they begin and end [N + 1].
    """
    values, counts = shingles(texts, shingle)
    ends = np.cumsum(counts)
    # One comparison for all texts after sorting: np.unique for each text takes twice as long.
    for one in np.split(values, ends[:-1]):
        one.sort()
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    new[(ends - counts)[counts > 0]] = True
    places = np.concatenate(([0], np.cumsum(new)))
    return values[new], places[np.concatenate(([0], ends))]


def overlap(one: UInt64, two: UInt64) -> tuple[int, int]:
    """The sizes of the intersection and of the union of two sets, each sorted and distinct."""
    both = np.concatenate((one, two))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared, len(both) - shared


# -- signatures ----------------------------------------------------------------------------


def signatures(texts: pa.Array, hashes: int, shingle: int) -> UInt32:
    """MinHash signatures [N, hashes]. Two texts agree in a place with probability = similarity.

    One hash of a shingle gives a place and a number, and each place keeps its smallest number. For
    places that are still empty all shingles are hashed again, in up to eight rounds. A place that
    is empty even then gets the smallest value of a hash function of its own. So a place holds the
    smallest (round, number) of a text's shingles, and two texts agree there if the shingle that is
    smallest of both texts is in both.

    Args:
        texts: texts, or the results of `words_of`. A text without words has empty places only.
        hashes: number of places.
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
    """Whether texts have words [N], given their signatures [N, hashes]."""
    filled: npt.NDArray[np.bool_] = (signature != _EMPTY).any(axis=1)
    return filled


def _spread(values: UInt64, counts: Int64, hashes: int) -> UInt32:
    """One round of `signatures`: the upper half of a hash gives the place, the lower the number.

    Args:
        values: hashes of shingles, one text after the other.
        counts: [N] number of shingles of each text.

    Returns:
        [N, hashes] the smallest number in each place, or _EMPTY.
    """
    upper = values >> _HALF
    upper *= np.uint64(hashes)
    upper >>= _HALF
    places = upper.view(np.int64)
    places += np.repeat(np.arange(len(counts)) * hashes, counts)
    least = np.full(len(counts) * hashes, _EMPTY, np.uint32)
    np.minimum.at(least, places, values.astype(np.uint32))
    return least.reshape(len(counts), hashes)


def _fill(found: UInt32, rows: Int64, values: UInt64, counts: Int64) -> None:
    """Give each empty place the smallest hash of all shingles, by a hash function of the place.

    Args:
        found: [N, hashes] signatures, changed in place.
        rows: indices of texts with empty places.
        values, counts: the shingles of these texts, as in `_spread`.
    """
    for place, factor in enumerate(_odd(found.shape[1])):
        empty = found[rows, place] == _EMPTY
        if empty.any():
            mine = values[np.repeat(empty, counts)] * factor >> _HALF
            begins = np.cumsum(counts[empty]) - counts[empty]
            found[rows[empty], place] = np.minimum.reduceat(mine, begins)


def _odd(count: int) -> UInt64:
    """Fixed odd multipliers [count]."""
    return mix(np.arange(count, dtype=np.uint64)) | np.uint64(1)


def band_values(signature: npt.NDArray[np.uint32], bands: int, rows: int) -> Int64:
    """A hash of each band of each signature, and of the band's number: [N, bands].

    Args:
        signature: [N, hashes], of which the first bands * rows are used.
    """
    values = np.tile(np.arange(bands, dtype=np.uint64), (len(signature), 1))
    if not values.size:
        return values.view(np.int64)
    cut = signature[:, : bands * rows].reshape(len(signature), bands, rows)
    for row in range(rows):
        values = mix(values) ^ cut[:, :, row]
    return mix(values).view(np.int64)


def fold(values: Int64) -> Int64:
    """A hash of each row of numbers: [N, columns] -> [N]."""
    result = np.zeros(len(values), np.uint64)
    for column in values.T:
        result = mix(result ^ column.view(np.uint64))
    return result.view(np.int64)
