"""Find where texts have n consecutive words in common with other texts: exactly, with NumPy.

A text is read as units: words (runs of letters, digits and marks) and single CJK characters, in
NFKC form with case folded (`folding`). Other characters only separate units, and format characters
are ignored. So case, width, ligatures, the way accents are written, white space and punctuation
make no difference.

One window begins at each unit of a text: `ngram` units, or `cjk_ngram` units if more than half of
the first `ngram` are CJK characters. Windows are looked up by 64-bit hashes, and each hit is then
compared character by character, so a collision of hashes costs only time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bc2.data.mixture import mix
from bc2.data.prep.stages.decontamination.folding import CJK, SEPARATOR, Folded, folded

Ints = npt.NDArray[np.integer[Any]]
UInts = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

#: Odd multipliers of polynomial hashes modulo 2^64: of characters, of units.
_BASE_CHARACTER, _BASE_UNIT = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


class Sizes(NamedTuple):
    """Lengths in units."""

    ngram: int
    """Units of a window."""
    cjk_ngram: int
    """Units of a window of mostly CJK characters."""
    min_words: int
    """Fewest units of a text that is shorter than a window, and is searched as a whole."""
    min_cjk: int
    """The same for a text of mostly CJK characters."""


class Units(NamedTuple):
    """Texts as units: t texts, u units, c characters of units (separators are left out)."""

    characters: npt.NDArray[np.uint32]  # [c] folded
    edges: Ints  # [u + 1] where units begin in `characters`
    text: Ints  # [u] index of the text
    start: Ints  # [u] first character in its text
    stop: Ints  # [u] one past the last
    is_cjk: Mask  # [u]
    first: Ints  # [t + 1] where texts begin among the units

    @classmethod
    def of(cls, texts: Sequence[str]) -> Units:
        """The units of texts, one text after the other.

        Memory while it runs: about 60 bytes for each character.
        """
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
        letters = folded("\n".join(texts))
        place = np.flatnonzero(letters.kinds != SEPARATOR)
        begins = _begins(letters, place)
        edges = np.append(np.flatnonzero(begins), len(place))
        first, last = place[edges[:-1]], place[edges[1:] - 1]
        start, stop = letters.span(first)[0], letters.span(last)[1]
        counts = np.diff(np.searchsorted(start, starts))  # units of each text
        text = np.repeat(np.arange(len(texts)), counts)
        return cls(
            letters.codes[place],
            edges,
            text,
            start - starts[text],
            stop - starts[text],
            letters.kinds[first] == CJK,
            np.concatenate([[0], np.cumsum(counts)]),
        )

    def hashes(self) -> UInts:
        """A 64-bit hash of each unit [u]."""
        if not len(self.text):
            return np.zeros(0, np.uint64)
        lengths = np.diff(self.edges)
        within = np.arange(len(self.characters)) - np.repeat(self.edges[:-1], lengths)
        powers = _powers(_BASE_CHARACTER, int(lengths.max()))
        terms = (self.characters.astype(np.uint64) + np.uint64(1)) * powers[within]
        return mix(np.add.reduceat(terms, self.edges[:-1]))

    def left(self) -> Ints:
        """[u] the number of units from each to the end of its text, itself included."""
        return self.first[self.text + 1] - np.arange(len(self.text))

    def windows(self, sizes: Sizes) -> Ints:
        """[u] the size of the window that begins at each unit; 0 if the text ends inside it."""
        before = np.concatenate([[0], np.cumsum(self.is_cjk)])
        here = np.arange(len(self.text))
        ends = np.minimum(here + sizes.ngram, self.first[self.text + 1])
        mostly_cjk = 2 * (before[ends] - before[here]) > sizes.ngram
        size = np.where(mostly_cjk, sizes.cjk_ngram, sizes.ngram)
        return np.where(size <= self.left(), size, 0)


def _begins(letters: Folded, place: Ints) -> Mask:
    """[c] whether a unit begins at each character of units.

    Args:
        place: [c] index of each character of units among the folded ones.
    """
    begins = np.ones(len(place), bool)
    cjk = letters.kinds[place] == CJK
    begins[1:] = (np.diff(place) != 1) | cjk[1:] | cjk[:-1]
    return begins


def _powers(base: int, count: int) -> UInts:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


def rolled(
    units: UInts, sizes: Sequence[int], places: Ints, left: Ints
) -> Iterator[tuple[int, UInts]]:
    """Hashes of the windows of each size, in ascending order of size.

    Args:
        units: [u] hashes of units.
        sizes: of windows, in units.
        places: [p] indices of the units where windows begin.
        left: [p] the number of units from there to the end of the text.

    Yields:
        A size, and the hashes of the windows at those places that have so many units left.
    """
    powers = _powers(_BASE_UNIT, max(sizes, default=0))
    total = np.zeros(len(places), np.uint64)
    for size in range(1, len(powers) + 1):
        stay = left >= size
        if not stay.all():
            places, left, total = places[stay], left[stay], total[stay]
        total = total + units[places + size - 1] * powers[size - 1]
        if size in sizes:
            yield size, mix(total)


class NgramIndex:
    """The windows to search for: g n-grams, sorted by (size, hash).

    Each is stored with the place where it first occurs in the texts. Of windows with equal hashes
    one is kept: the probability that any two of 10^7 different windows collide is 3e-6.

    Attributes:
        size: [g] number of units.
        hash: [g] hash of the window.
        unit: [g] index of its first unit.
        text: [g] index of the text that it is in.
        start: [g] index of its first character in that text.
        characters: folded characters of all units.
        edges: where units begin in `characters`.
        prefix: hashes of the first units of n-grams: as many units as the shortest n-gram has.
    """

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]]):
        self.size, self.hash, self.unit = (columns[name] for name in ("size", "hash", "unit"))
        self.text, self.start = columns["text"], columns["start"]
        self.characters, self.edges = columns["characters"], columns["edges"]
        self._columns = columns
        sizes, first = np.unique(self.size, return_index=True)
        self.sizes: list[int] = sizes.tolist()
        ends = [*first.tolist(), len(self.size)]
        self._range = dict(zip(self.sizes, pairwise(ends), strict=True))
        self.prefix = columns["prefix"]
        self._filter: Mask | None = None

    @classmethod
    def of(cls, texts: Sequence[str], sizes: Sizes) -> tuple[NgramIndex, Mask]:
        """The index of texts; and which of them are too short to be found [t]."""
        units = Units.of(texts)
        size, short = _windows(units, sizes)
        found = [np.zeros((3, 0), np.uint64)]
        unit_hashes = units.hashes()
        lengths = np.unique(size[size > 0]).tolist()
        for length in lengths:
            at = np.flatnonzero(size == length)
            ((_, hashes),) = rolled(unit_hashes, [length], at, size[at])
            rows = (size[at], hashes, at)
            found.append(np.stack([row.astype(np.uint64) for row in rows]))
        grams = np.concatenate(found, axis=1)
        grams = grams[:, np.lexsort((grams[2], grams[1], grams[0]))]
        new = np.ones(grams.shape[1], bool)
        new[1:] = (grams[:2, 1:] != grams[:2, :-1]).any(axis=0)
        length, hashes, unit = grams[:, new]
        length, unit = length.astype(np.int64), unit.astype(np.int64)
        least = min(lengths, default=0)
        prefixes = [hashes for _, hashes in rolled(unit_hashes, [least], unit, length)]
        columns = {
            "prefix": np.unique(np.concatenate([np.zeros(0, np.uint64), *prefixes])),
            "size": length.astype(np.int32),
            "hash": hashes,
            "unit": unit,
            "text": units.text[unit].astype(np.int32),
            "start": units.start[unit].astype(np.int32),
            "characters": units.characters,
            "edges": units.edges,
        }
        return cls(columns), short

    def save(self, folder: Path) -> None:
        """Write the index to a folder, one file for each column."""
        for name, column in self._columns.items():
            np.save(folder / f"{name}.npy", column)

    @classmethod
    def load(cls, folder: Path) -> NgramIndex:
        """Open an index that `save` wrote; it is memory-mapped, so processes share its memory."""
        return cls({file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")})

    def find(self, units: Units) -> tuple[Ints, Ints]:
        """Find the n-grams in other texts.

        Returns:
            The first unit of each match, ascending [h]; and the number of its n-gram [h].
        """
        found: list[tuple[int, int]] = []
        hashes = units.hashes()
        places = self._candidates(hashes, units.left())
        left = units.left()[places]
        for length, sums in rolled(hashes, self.sizes, places, left):
            at = places[left >= length]
            first, last = self._range[length]
            grams = first + np.searchsorted(self.hash[first:last], sums)
            grams = np.minimum(grams, last - 1)
            right = self.hash[grams] == sums
            pairs = zip(at[right].tolist(), grams[right].tolist(), strict=True)
            found += [(unit, gram) for unit, gram in pairs if self._is(gram, units, unit, length)]
        array = np.array(sorted(found), np.int64).reshape(-1, 2)
        return array[:, 0], array[:, 1]

    def _candidates(self, hashes: UInts, left: Ints) -> Ints:
        """Units where an n-gram may begin, found by a hash table of the n-grams' first units."""
        least = min(self.sizes, default=0)
        places = np.flatnonzero(left >= least) if least else np.zeros(0, np.int64)
        if not len(places):
            return places
        width = min(26, max(8, (8 * len(self.prefix)).bit_length()))
        shift = np.uint64(64 - width)
        if self._filter is None:
            self._filter = np.zeros(1 << width, bool)
            self._filter[self.prefix >> shift] = True
        ((_, sums),) = rolled(hashes, [least], places, left[places])
        candidates: Ints = places[self._filter[sums >> shift]]
        return candidates

    def _is(self, gram: int, units: Units, unit: int, length: int) -> bool:
        """Whether the `length` units from `unit` on are equal to those of an n-gram."""
        mine = self.edges[self.unit[gram] :][: length + 1]
        theirs = units.edges[unit:][: length + 1]
        return np.array_equal(mine - mine[0], theirs - theirs[0]) and np.array_equal(
            self.characters[mine[0] : mine[-1]], units.characters[theirs[0] : theirs[-1]]
        )


def _windows(units: Units, sizes: Sizes) -> tuple[Ints, Mask]:
    """The windows to search for.

    A text that is shorter than a window is one window itself, if it is long enough.

    Returns:
        The size of the window that begins at each unit, 0 for none [u]; and which texts have no
        window [t].
    """
    size = units.windows(sizes)
    with_units = np.flatnonzero(np.diff(units.first))
    first = units.first[with_units]
    counts = units.first[with_units + 1] - first
    if not len(first):
        return size, np.ones(len(units.first) - 1, bool)
    has_window = np.add.reduceat(size > 0, first, dtype=np.int64) > 0
    mostly_cjk = 2 * np.add.reduceat(units.is_cjk, first, dtype=np.int64) > counts
    whole = ~has_window & (counts >= np.where(mostly_cjk, sizes.min_cjk, sizes.min_words))
    size[first[whole]] = counts[whole]
    size[_is_repetitive(units, size)] = 0
    findable = np.add.reduceat(size > 0, first, dtype=np.int64) > 0
    short = np.ones(len(units.first) - 1, bool)
    short[with_units[findable]] = False
    return size, short


def _is_repetitive(units: Units, size: Ints) -> Mask:
    """[u] windows with less than a third of their units distinct, such as "0, 0, 0, 0"."""
    _, kind = np.unique(units.hashes(), return_inverse=True)
    order = np.argsort(kind, kind="stable")
    before = np.full(len(kind), -1)  # where the same unit occurred last
    again = np.flatnonzero(np.diff(kind[order]) == 0) + 1
    before[order[again]] = order[again - 1]
    different = np.zeros(len(size), np.int64)
    for offset in range(int(size.max(initial=0))):
        here = np.flatnonzero(size > offset)
        different[here] += before[here + offset] < here
    return 3 * different < size
