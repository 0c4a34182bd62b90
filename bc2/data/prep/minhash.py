"""MinHash signatures, their bands, and the exact sets of shingles that they stand for.

A document is compared as its words: NFKD, lower case, and every run of characters that are
not letters, marks or numbers is one space, so code is compared without its operators. A
Chinese character, kana or its mark (U+3000 to U+9FFF, and planes 2 and 3) is a word by itself.
Other scripts without spaces (Thai, Khmer) are not split: their words are whole phrases, so
fewer of their near-duplicates are found.

A shingle is so many words in a row; a document of fewer words is one shingle, all of it.
Two documents are as near as their sets of shingles: Jaccard similarity, shared / united.

MinHash after Broder, "On the resemblance and containment of documents" (1997); bands after
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4. Hashing is Daft's,
by a record batch at a time: no runner, no threads, rows in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bc2.data.mixture import mix
from bc2.errors import RecipeError

if TYPE_CHECKING:
    import daft

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

#: UTF-8 bytes of text that are turned into words at once; a slice takes about 12 times that.
SLICE_BYTES = 8 << 20

_SPACE = 0x20
#: Letters, marks and numbers make words; the rest parts them.
_NOT_WORD = r"[^\p{L}\p{M}\p{N}]+"
#: Of the hashes that Daft has for this, the fastest.
_HASH: Any = "xxhash3_64"
_SEED = 1


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


# -- words ---------------------------------------------------------------------------------


def slices(texts: pa.ChunkedArray, limit: int = SLICE_BYTES) -> Iterator[pa.Array]:
    """Runs of texts of about `limit` UTF-8 bytes, a single text at least, in their order."""
    for chunk in texts.chunks:
        ends = np.cumsum(pc.binary_length(chunk.cast(pa.large_binary())).to_numpy())
        first = 0
        while first < len(chunk):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + limit, "right")))
            yield chunk.slice(first, last - first)
            first = last


def words_of(texts: pa.Array) -> pa.Array:
    """Texts as they are compared: words with one space between; empty where there are none."""
    from daft import col

    # Any one form serves; of pyarrow's only the decomposed are right: 25.0 leaves NFC and NFKC
    # decomposed as well.
    plain = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKD"))
    spaced = _evaluate({"text": plain}, col("text").regexp_replace(_NOT_WORD, " "))
    return _part_cjk(pc.ascii_trim(spaced, " ").cast(pa.large_string()))


def _part_cjk(texts: pa.Array) -> pa.Array:
    """A space on both sides of each CJK character, where there is none yet.

    By bytes: a UTF-8 sequence that begins with E3 to E9 is U+3000 to U+9FFF, with F0 and A0
    or more planes 2 and 3. A regular expression takes six times as long.
    """
    _, ends, data = texts.buffers()
    if data is None or not len(texts):
        return texts
    places = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(data, np.uint8)[places[0] : places[-1]]
    places = places - places[0]
    three = (letters >= 0xE3) & (letters <= 0xE9)
    four = letters == 0xF0
    four[:-1] &= letters[1:] >= 0xA0
    cut = np.zeros(len(letters) + 1, bool)
    cut[:-1] = three | four
    cut[3:] |= three[:-2]  # no character is cut short at the end
    cut[4:] |= four[:-3]
    cut[places] = False
    cut[:-1] &= letters != _SPACE
    cut[1:] &= letters != _SPACE
    at = np.flatnonzero(cut)
    moved = places + np.searchsorted(at, places)
    parted = np.full(len(letters) + len(at), _SPACE, np.uint8)
    given = np.ones(len(parted), bool)
    given[at + np.arange(len(at))] = False
    parted[given] = letters
    buffers = [None, pa.py_buffer(moved), pa.py_buffer(parted)]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers)


def _evaluate(columns: dict[str, pa.Array], expression: daft.Expression) -> pa.Array:
    from daft.expressions import ExpressionsProjection
    from daft.recordbatch import RecordBatch

    what = ExpressionsProjection([expression.alias("it")])
    batch = RecordBatch.from_pydict(columns).eval_expression_list(what)
    return batch.to_arrow_table()["it"].combine_chunks()


# -- signatures ----------------------------------------------------------------------------


def signatures(words: pa.Array, hashes: int, shingle: int) -> npt.NDArray[np.uint32]:
    """[texts, hashes] of each hash the least over a text's shingles; no meaning without words.

    Args:
        words: from `words_of`.
        shingle: words in a shingle.
    """
    from daft import col

    if not len(words):
        return np.zeros((0, hashes), np.uint32)
    minimum = col("text").minhash(
        num_hashes=hashes, ngram_size=shingle, seed=_SEED, hash_function=_HASH
    )
    found = _evaluate({"text": words}, minimum)
    flat: npt.NDArray[np.uint32] = found.flatten().to_numpy()
    return flat.reshape(len(words), hashes)


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


# -- sets of shingles ----------------------------------------------------------------------


def shingle_sets(words: pa.Array, shingle: int) -> tuple[UInt64, Int64]:
    """The distinct shingles of texts, each as 64 bits (two differ but for one chance in 2^64).

    Args:
        words: from `words_of`.

    Returns:
        all sets one after the other, each sorted; and the [texts + 1] places of their ends.
    """
    from daft import col

    lists = pc.split_pattern(words, " ")
    counts = np.diff(lists.offsets.to_numpy()).astype(np.int64)
    begins = np.cumsum(counts) - counts
    hashed = _evaluate({"word": lists.flatten()}, col("word").hash())
    word: UInt64 = hashed.to_numpy()
    counts[pc.binary_length(words.cast(pa.large_binary())).to_numpy() == 0] = 0
    windows = np.where(counts > 0, np.maximum(counts - shingle + 1, 1), 0)
    ends = np.cumsum(windows)
    values = np.zeros(int(windows.sum()), np.uint64)
    within = np.arange(len(values)) - np.repeat(ends - windows, windows)
    at = np.repeat(begins, windows) + within
    width = np.repeat(np.minimum(counts, shingle), windows)
    for number in range(shingle):
        inside = width > number  # short texts have narrow shingles
        values[inside] = mix(values[inside] ^ word[at[inside] + number])
    sets = [np.unique(values[e - n : e]) for n, e in zip(windows, ends, strict=True)]
    sizes = [len(one) for one in sets]
    return np.concatenate([np.zeros(0, np.uint64), *sets]), np.cumsum([0, *sizes])


def overlap(one: UInt64, two: UInt64) -> tuple[int, int]:
    """Shared and united shingles of two sets, each sorted and distinct."""
    both = np.concatenate((one, two))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared, len(both) - shared
