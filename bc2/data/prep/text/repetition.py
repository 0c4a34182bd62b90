"""Repetition within a document: of lines, paragraphs and n-grams (Gopher, appendix A.1).

Spans of words are compared by 42 bits of a hash; the other 22 bits of a number hold their place.
So one sort finds the equal spans of a batch with their places in order, and places tell documents
apart. Where an n-gram occurs twice, its shorter n-grams occur twice too. So all spans are sorted
only for the smallest n; for a larger n only those that begin at a repeated shorter n-gram are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bc2.data.prep.text.document_statistics import Bools, DocumentStatistics, Int64, Spans, UInt64

#: Bits of a place: enough for the characters of a batch and for `HeuristicsSettings.head`.
_PLACE = np.uint64(22)


#: An n-gram that occurs fewer times is a term of a short text, whatever its share.
OFTEN = 8


class Equal(NamedTuple):
    """The spans that occur more than once in their document; equal spans follow one another."""

    which: Int64
    """Indices of the spans, ascending among equal ones."""
    first: Bools
    """Which spans are the first of all equal ones in their document."""


def equal(hashes: UInt64, document: Int64) -> Equal:
    """Find the spans that occur more than once in their document.

    Args:
        hashes: [spans].
        document: [spans] index of the document of each; ascending.
    """
    keys = (hashes >> _PLACE) << _PLACE
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    which = (keys & np.uint64((1 << 22) - 1)).astype(np.int64)
    keys >>= _PLACE
    near = np.flatnonzero(keys[1:] == keys[:-1])
    near = near[document[which[near]] == document[which[near + 1]]]
    again = np.zeros(len(keys), bool)
    again[near + 1] = True
    some = again.copy()
    some[near] = True
    return Equal(which[some], ~again[some])


class Repeats(NamedTuple):
    """How much of each document repeats an earlier line or paragraph of it."""

    spans: Int64
    """[D] the number of repeated lines or paragraphs."""
    characters: Int64
    """[D] the number of characters of their words."""


def repeats(form: DocumentStatistics, spans: Spans) -> Repeats:
    """Count the lines or paragraphs of each document that repeat an earlier one of it."""
    found = equal(form.running_words.spans(spans.first, spans.last), spans.document)
    again = found.which[~found.first]
    length = form.running_length[spans.last[again]] - form.running_length[spans.first[again]]
    document = spans.document[again]
    return Repeats(np.bincount(document, minlength=form.count), form.sums(document, length))


class NGrams(NamedTuple):
    """The n-grams of one length that occur more than once in their document."""

    n: int
    top: Int64
    """[D] occurrences times characters of the most frequent n-gram; of equally frequent ones, of
    the longest. 0 if none occurs `OFTEN` times."""
    covered: Int64
    """[D] characters of words that are in one or more of the n-grams."""


def ngrams(form: DocumentStatistics, lengths: Iterable[int]) -> Iterator[NGrams]:
    """Measure the repeated n-grams of words, for each n in ascending order.

    Only characters of words count. Occurrences may overlap, so `NGrams.top` may exceed the number
    of a document's characters.
    """
    document = form.word_document
    ends = form.word_edges[1:]
    places = np.arange(len(document))
    for n in sorted(lengths):
        places = places[places + n <= ends[document[places]]]
        hashes = form.running_words.spans(places, places + n)
        found = equal(hashes, document[places])
        places = places[found.which]
        top = _top(form, n, places, np.flatnonzero(found.first))
        places.sort()
        yield NGrams(n, top, _covered(form, n, places))


def _top(form: DocumentStatistics, n: int, places: Int64, opens: Int64) -> Int64:
    """Compute `NGrams.top` [D].

    Args:
        places: first words of the repeated n-grams; equal n-grams follow one another.
        opens: where in `places` each group of equal n-grams begins.
    """
    times = np.diff(np.concatenate((opens, [len(places)])))
    begins = places[opens]
    length = form.running_length[begins + n] - form.running_length[begins]
    best = np.zeros(form.count, np.int64)
    times[times < OFTEN] = 0
    np.maximum.at(best, form.word_document[begins], (times << 32) | length)
    return (best >> 32) * (best & 0xFFFFFFFF)


def _covered(form: DocumentStatistics, n: int, places: Int64) -> Int64:
    """Compute `NGrams.covered` [D]: each n-gram counts up to where the next one begins.

    Args:
        places: first words of the repeated n-grams, ascending.
    """
    ends = places + n
    ends[:-1] = np.minimum(ends[:-1], places[1:])
    length = form.running_length[ends] - form.running_length[places]
    return form.sums(form.word_document[places], length)
