"""Repetition within a document: of lines, paragraphs and n-grams (Gopher, appendix A.1).

Spans of words are compared by 42 bits of a hash; the other 22 bits hold their place. So one sort
finds the equal spans of a batch and their places, in order, which keeps documents apart. An
n-gram that occurs twice begins where a shorter n-gram occurs twice, so only the spans of the
shortest n are all sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bc2.data.prep.text.document_statistics import Bools, DocumentStatistics, Int64, Spans, UInt64

#: Bits of a place: more than there are characters in a batch or in `HeuristicsSettings.head`.
_PLACE = np.uint64(22)


class Equal(NamedTuple):
    """Spans that a document has more than once, equal ones next to each other."""

    which: Int64
    """Numbers of the spans, rising among equal ones."""
    first: Bools
    """Which are the first of their document among their equals."""


def equal(hashes: UInt64, document: Int64) -> Equal:
    """The spans that a document holds more than once, by their hashes."""
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
    """Spans that repeat an earlier one of their document."""

    spans: Int64
    """[D]"""
    characters: Int64
    """[D] of their words."""


def repeats(form: DocumentStatistics, spans: Spans) -> Repeats:
    """How many lines or paragraphs of each document repeat an earlier one of it."""
    found = equal(form.running_words.spans(spans.first, spans.last), spans.document)
    again = found.which[~found.first]
    length = form.running_length[spans.last[again]] - form.running_length[spans.first[again]]
    document = spans.document[again]
    return Repeats(np.bincount(document, minlength=form.count), form.sums(document, length))


class NGrams(NamedTuple):
    """The n-grams of one length that occur more than once in their document."""

    n: int
    top: Int64
    """[D] occurrences times characters of the most frequent one, of the longest if several are."""
    covered: Int64
    """[D] characters of words that lie in one or more."""


def ngrams(form: DocumentStatistics, lengths: Iterable[int]) -> Iterator[NGrams]:
    """Repeated n-grams of words, for each n in rising order.

    Characters are of words; occurrences may overlap, so `top` may exceed a document's characters.
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
    """[D] from the places of repeated n-grams, equal ones side by side, which `opens` parts."""
    times = np.diff(np.concatenate((opens, [len(places)])))
    begins = places[opens]
    length = form.running_length[begins + n] - form.running_length[begins]
    best = np.zeros(form.count, np.int64)
    np.maximum.at(best, form.word_document[begins], (times << 32) | length)
    return (best >> 32) * (best & 0xFFFFFFFF)


def _covered(form: DocumentStatistics, n: int, places: Int64) -> Int64:
    """[D] from rising places: each n-gram counts up to where the next begins."""
    ends = places + n
    ends[:-1] = np.minimum(ends[:-1], places[1:])
    length = form.running_length[ends] - form.running_length[places]
    return form.sums(form.word_document[places], length)
