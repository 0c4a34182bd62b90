"""Statistics of documents: their characters, words, lines and paragraphs, counted by NumPy.

The documents of a batch are joined to one array of code points, with line breaks between them, so
that NumPy counts all of them at once. The statistics of a document do not depend on the others.

A **word** is a CJK character, or a run of other characters up to white space or a CJK character.
But a run without letters and digits next to a CJK character is punctuation, not a word. A **line**
has at least one character that is not white space. A **paragraph** is a run of lines without a
blank line between them. Two lines or paragraphs are equal if their words are.

Shapes:
    N  characters of a batch      T  tokens (words and punctuation)      W  words
    L  lines      D  documents
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bc2.data.mixture import mix
from bc2.data.prep.text.character_classes import (
    BASE64,
    BREAK,
    BULLET,
    CJK,
    CLASSES,
    CLOSER,
    DIGITS,
    DOT,
    ELLIPSIS,
    ENCODED,
    ENDS,
    HASH,
    LETTER_DIGIT,
    LETTERS,
    SPACE,
    TERMINAL,
    class_table,
    which,
)
from bc2.data.prep.text.rolling_hash import Rolling, rolling

Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

#: The most characters of a batch; each takes about 60 bytes of memory. A longer document is a batch
#: of its own.
BATCH = 1 << 20

#: A list item of so many words is a sentence.
SENTENCE_WORDS = 10

#: Fewest characters of a run of base64 or hex that counts.
ENCODED_RUN = 64


def document_batches(texts: Sequence[str]) -> Iterator[slice]:
    """Runs of documents of at most `BATCH` characters, or of one document."""
    first = size = 0
    for at, text in enumerate(texts):
        if at > first and size + len(text) >= BATCH:
            yield slice(first, at)
            first, size = at, 0
        size += len(text) + 1
    if first < len(texts):
        yield slice(first, len(texts))


class Spans(NamedTuple):
    """Runs of words, such as lines or paragraphs."""

    first: Int64
    """Index of the first word of each."""
    last: Int64
    """Index of the word after its last."""
    document: Int64
    """Index of its document; ascending."""


class DocumentStatistics:
    """The statistics of a batch of documents; each is computed when it is first used."""

    def __init__(self, texts: Sequence[str]):
        joined = "\n" + "".join(text + "\n" for text in texts)
        self.count = len(texts)
        self.codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)  # [N]
        self.classes = class_table()[self.codes]  # [N]
        sizes = np.array([len(text) + 1 for text in texts], np.int64)
        self.edges = np.concatenate(([1], 1 + np.cumsum(sizes)))  # [D + 1] first characters

    def per_document(self, places: Int64) -> Int64:
        """[D] how many places are in each document.

        Args:
            places: ascending indices of characters.
        """
        return np.diff(np.searchsorted(places, self.edges))

    def sums(self, document: Int64, values: npt.NDArray[np.generic]) -> Int64:
        """[D] the sum of the integers `values` in each document; exact below 2**53."""
        return np.bincount(document, values, self.count).astype(np.int64)

    # -- characters ------------------------------------------------------------------------

    @cached_property
    def histogram(self) -> Int64:
        """[D, classes] the number of characters of each class, with a line break at the end."""
        rows = np.repeat(np.arange(self.count) * CLASSES, np.diff(self.edges))
        counted = np.bincount(rows + self.classes[1:], minlength=self.count * CLASSES)
        return counted.reshape(self.count, CLASSES)

    def characters(self, mask: Bools) -> Int64:
        """[D] the number of characters whose class is in a mask."""
        return np.asarray(self.histogram[:, mask].sum(axis=1))

    @cached_property
    def solid(self) -> Int64:
        """[D] the number of characters that are not white space."""
        return self.characters(~which(SPACE, BREAK))

    @property
    def letters(self) -> Int64:
        """[D] the number of letters, CJK characters included."""
        return self.characters(LETTERS)

    @property
    def digits(self) -> Int64:
        """[D] the number of digits."""
        return self.characters(DIGITS)

    @property
    def cjk(self) -> Int64:
        """[D] the number of CJK characters."""
        return self.histogram[:, CJK]

    @property
    def hashes(self) -> Int64:
        """[D] the number of runs of hash signs."""
        marks = self.classes == HASH
        return self.per_document(np.flatnonzero(marks[1:] & ~marks[:-1]) + 1)

    @property
    def ellipses(self) -> Int64:
        """[D] the number of runs of the ellipsis character, and of three or more full stops."""
        marks, dots = self.classes == ELLIPSIS, self.classes == DOT
        single = np.flatnonzero(marks[1:] & ~marks[:-1]) + 1
        three = np.flatnonzero(dots[1:-2] & dots[2:-1] & dots[3:] & ~dots[:-3]) + 1
        return self.per_document(single) + self.per_document(three)

    @property
    def encoded(self) -> Int64:
        """[D] the number of characters in runs of base64 or hex.

        Such a run has at least `ENCODED_RUN` characters of base64, of which at most one in eight
        is + or /.
        """
        starts, ends = self.tokens
        if not (ends - starts >= ENCODED_RUN).any():
            return np.zeros(self.count, np.int64)
        edges = np.diff(np.concatenate(([False], ENCODED[self.classes], [False])).view(np.int8))
        begins, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        long = stops - begins >= ENCODED_RUN
        begins, stops = begins[long], stops[long]
        signs = np.concatenate(([0], np.cumsum(self.classes == BASE64)))
        real = (signs[stops] - signs[begins]) * 8 <= stops - begins
        begins, stops = begins[real], stops[real]
        return self.sums(np.searchsorted(self.edges, begins, "right") - 1, stops - begins)

    # -- words -----------------------------------------------------------------------------

    @cached_property
    def tokens(self) -> tuple[Int64, Int64]:
        """[T], [T] where tokens (words and punctuation) begin and end."""
        cjk = self.classes == CJK
        solid = (self.classes != SPACE) & (self.classes != BREAK)
        alone = cjk | ~solid  # a run ends at such a character
        starts = solid.copy()
        starts[1:] &= cjk[1:] | alone[:-1]
        stops = solid.copy()
        stops[:-1] &= cjk[:-1] | alone[1:]
        return np.flatnonzero(starts), np.flatnonzero(stops) + 1

    @cached_property
    def _words(self) -> tuple[Int64, Int64, Bools]:
        """[W], [W], [W] where words begin and end, and whether they have a letter."""
        starts, ends = self.tokens
        if not len(starts):
            return starts, ends, np.zeros(0, bool)
        # Each sum also takes in the white space before the next token, which adds nothing.
        inside = np.bitwise_or.reduceat(LETTER_DIGIT[self.classes], starts)
        # There is a character before and after every token, because the array begins and ends with
        # a line break.
        touches = (self.classes[starts - 1] == CJK) | (self.classes[ends] == CJK)
        words = (inside > 0) | ~touches
        return starts[words], ends[words], (inside[words] & 1) > 0

    @cached_property
    def words(self) -> Int64:
        """[D] the number of words."""
        return self.per_document(self._words[0])

    @property
    def list_marks(self) -> Int64:
        """[D] the number of words that are no more than the bullet of a list item."""
        _, first, _, document = self._lines
        after = self.classes[first + 1]
        alone = (self.classes[first] == BULLET) & ((after == SPACE) | (after == BREAK))
        return self.sums(document, alone)

    @property
    def alphabetic_words(self) -> Int64:
        """[D] the number of words with a letter."""
        starts, _, alphabetic = self._words
        return self.per_document(starts[alphabetic])

    @cached_property
    def word_edges(self) -> Int64:
        """[D + 1] index of the first word of each document, and the number of words."""
        return np.concatenate(([0], np.cumsum(self.words)))

    @cached_property
    def word_document(self) -> Int64:
        """[W] index of the document of each word."""
        return np.repeat(np.arange(self.count), self.words)

    @cached_property
    def running_length(self) -> Int64:
        """[W + 1] the number of characters of all words before each word."""
        starts, ends, _ = self._words
        return np.concatenate(([0], np.cumsum(ends - starts)))

    @cached_property
    def word_characters(self) -> Int64:
        """[D] the number of characters of all words."""
        return np.diff(self.running_length[self.word_edges])

    @cached_property
    def word_hashes(self) -> UInt64:
        """[W] 64-bit hashes of the words; case counts."""
        starts, ends, _ = self._words
        return mix(rolling(self.codes).spans(starts, ends))

    @cached_property
    def running_words(self) -> Rolling:
        """The rolling hash from which hashes of spans of words are computed."""
        return rolling(self.word_hashes)

    def distinct(self, words: tuple[str, ...]) -> Int64:
        """[D] how many different words of a list each document has.

        Args:
            words: the list, in lower case. Upper case and capitalised words count too.
        """
        known, number = _spellings(words)
        likely = np.zeros(1 << 12, bool)
        likely[known >> np.uint64(52)] = True
        short = np.flatnonzero(likely[self.word_hashes >> np.uint64(52)])
        slot = np.minimum(np.searchsorted(known, self.word_hashes[short]), len(known) - 1)
        found = known[slot] == self.word_hashes[short]
        pairs = self.word_document[short[found]] * len(words) + number[slot[found]]
        return np.bincount(np.unique(pairs) // len(words), minlength=self.count)

    # -- lines and paragraphs --------------------------------------------------------------

    @cached_property
    def _lines(self) -> tuple[Int64, Int64, Int64, Int64]:
        """For each line that is not blank, four indices: [L] each.

        Its number among all lines, its first and its last character that are not white space, and
        its document.
        """
        breaks = np.flatnonzero(self.classes == BREAK)
        starts, ends = self.tokens
        upto = np.searchsorted(starts, breaks)
        full = np.flatnonzero(np.diff(upto))
        first, last = starts[upto[full]], ends[upto[full + 1] - 1] - 1
        return full, first, last, np.searchsorted(self.edges, first, "right") - 1

    @cached_property
    def lines(self) -> Int64:
        """[D] the number of lines."""
        return np.bincount(self._lines[3], minlength=self.count)

    @property
    def terminal_lines(self) -> Int64:
        """[D] the number of lines with the end of a sentence.

        They end in a terminal mark or a closing quotation mark, or after `SENTENCE_WORDS` words in
        a colon; or a terminal mark follows a letter or a closing mark and comes before a space:
        wrapped sentences end inside of lines. Full stops of Chinese need no space: many writers
        leave out the last one of a line.
        """
        _, first, last, document = self._lines
        spans = self.line_spans
        colon = (self.codes[last] == ord(":")) | (self.codes[last] == ord("："))
        kinds = self.classes
        marks = (kinds[1:-1] == DOT) | (kinds[1:-1] == TERMINAL)
        closed = LETTERS[kinds[:-2]] | (kinds[:-2] == CLOSER) | (self.codes[:-2] == ord(")"))
        marks &= closed & ((kinds[2:] == SPACE) | self._full_stops[1:-1])
        ends = ENDS[kinds[last]] | (colon & (spans.last - spans.first >= SENTENCE_WORDS))
        ends[np.searchsorted(first, np.flatnonzero(marks) + 1, "right") - 1] = True
        return self.sums(document, ends)

    @property
    def _full_stops(self) -> Bools:
        """[N] which characters are full stops or semicolons of Chinese."""
        stops: Bools = np.isin(self.codes, [ord(mark) for mark in "。；．"])
        return stops

    @property
    def terminal_paragraphs(self) -> Int64:
        """[D] the number of paragraphs that end in such a mark."""
        _, _, last, document = self._lines
        ends = np.concatenate((self._opens[1:], [True]))[: len(last)]
        return self.sums(document[ends], ENDS[self.classes[last[ends]]])

    @property
    def bullet_lines(self) -> Int64:
        """[D] the number of lines that begin with a bullet and are no sentence.

        A line with a terminal mark at its end, or of `SENTENCE_WORDS` words, is one.
        """
        _, first, last, document = self._lines
        spans = self.line_spans
        listed = (self.classes[first] == BULLET) & (spans.last - spans.first < SENTENCE_WORDS)
        return self.sums(document, listed & ~ENDS[self.classes[last]])

    @property
    def ellipsis_lines(self) -> Int64:
        """[D] the number of lines that end in an ellipsis or three full stops."""
        _, _, last, document = self._lines
        at = self.classes
        dots = (at[last] == DOT) & (at[last - 1] == DOT) & (at[np.maximum(last - 2, 0)] == DOT)
        return self.sums(document, dots | (at[last] == ELLIPSIS))

    def short_line_characters(self, limit: int) -> Int64:
        """[D] the number of characters in lines with fewer than `limit` characters."""
        _, first, last, document = self._lines
        size = last - first + 1
        return self.sums(document, np.where(size < limit, size, 0))

    @property
    def line_characters(self) -> Int64:
        """[D] the number of characters of all lines, without white space at their ends."""
        _, first, last, document = self._lines
        return self.sums(document, last - first + 1)

    @property
    def longest_line(self) -> Int64:
        """[D] the number of characters of the longest line, without white space at its ends."""
        _, first, last, document = self._lines
        longest = np.zeros(self.count, np.int64)
        np.maximum.at(longest, document, last - first + 1)
        return longest

    @cached_property
    def _opens(self) -> Bools:
        """[L] which lines begin a paragraph."""
        number, _, _, document = self._lines
        opens = np.ones(len(number), bool)
        opens[1:] = (np.diff(number) > 1) | (np.diff(document) > 0)
        return opens

    @cached_property
    def line_spans(self) -> Spans:
        """The lines as spans of words [L]."""
        _, first, last, document = self._lines
        starts = self._words[0]
        return Spans(
            np.searchsorted(starts, first), np.searchsorted(starts, last, "right"), document
        )

    @cached_property
    def paragraph_spans(self) -> Spans:
        """The paragraphs as spans of words [paragraphs]."""
        first, last, document = self.line_spans
        opens = np.flatnonzero(self._opens)
        closes = np.concatenate((opens[1:], [len(first)]))[: len(opens)] - 1
        return Spans(first[opens], last[closes], document[opens])

    @property
    def paragraphs(self) -> Int64:
        """[D] the number of paragraphs."""
        return np.bincount(self.paragraph_spans.document, minlength=self.count)


@cache
def _spellings(words: tuple[str, ...]) -> tuple[UInt64, Int64]:
    """Hashes of the spellings of words, sorted; and the index of the word of each spelling.

    The spellings of a word are lower case, upper case and capitalised.
    """
    spelled = [(word, number) for number, word in enumerate(words)]
    spelled += [(each, n) for word, n in spelled for each in (word.upper(), word.capitalize())]
    hashes = DocumentStatistics([" ".join(word for word, _ in spelled)]).word_hashes
    order = np.argsort(hashes)
    return hashes[order], np.array([number for _, number in spelled])[order]
