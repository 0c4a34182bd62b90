"""Score sentences by rules about their form; this needs no trained model.

A score is 1 minus a sum of penalties, and at least 0. A penalty grows with a feature, from 0 at
one bound to its full weight at another. The bounds were set for this project so that they separate
edited prose, statutes and manuals in Chinese and English from menus and notices of web pages,
wrongly decoded text and noise. The rules measure form alone: a sentence that is false, or whose
words are out of order, may score 1.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bc2.data.prep.text.sentence_scorer import Characters, batches, characters
from bc2.data.prep.text.sentences import CJK

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Penalty(NamedTuple):
    """A penalty: 0 up to `start` of a feature, `weight` from `full` on, and linear between."""

    feature: str
    weight: float
    start: float
    full: float


#: Shares are of the characters that are not white space; for digits and letters, with a
#: CJK character as 3, because it says as much. The size of a sentence is its number of letters,
#: with a CJK character as 3.
RULES = (
    Penalty("short", 0.15, 0.0, 1.0),  # 1 at a size of 0, 0 from 12 on
    Penalty("symbols", 0.6, 0.12, 0.4),  # symbols, and marks used in markup: * _ # < > ...
    Penalty("digits", 0.4, 0.25, 0.7),
    Penalty("no_letters", 0.5, 0.35, 0.8),  # neither letters nor ideographs
    Penalty("capitals", 0.25, 0.5, 1.0),  # share of the size, with 10 letters that have cases
    Penalty("mixed_case", 0.6, 0.06, 0.25),  # capitals after a small letter, share of the size
    Penalty("repeats", 0.8, 0.4, 0.8),  # equal to the character 1, 2, 3 or 4 before; the largest
    Penalty("urls", 0.6, 0.3, 0.8),  # characters of URLs
    Penalty("undecodable", 0.8, 0.02, 0.2),  # control, private, unassigned, U+FFFD
    Penalty("odd_letters", 0.7, 0.02, 0.15),  # frequent in wrongly decoded text: Ã â å ä ç
    Penalty("long_words", 0.4, 12.0, 25.0),  # letters per word, in sentences without CJK
    Penalty("spaced_out", 0.4, 0.5, 0.8),  # words per letter: l i k e  t h i s
    Penalty("no_end", 0.1, 0.0, 1.0),  # no punctuation mark at the end
    Penalty("no_function_words", 0.35, 0.0, 1.0),  # none of them; grows from size 30 to size 60
)

#: Function words of English (two thirds of all sentences of 8 words have three of them), and
#: frequent characters of classical, modern and legal Chinese.
_ENGLISH = re.compile(
    r"\b(?:the|of|and|to|in|a|is|that|it|was|for|as|with|be|by|on|not|he|his|i|you|this|are|or|"
    r"at|from|have|an|they|which|we|but|if|her|she|all|my|so|no|me|who|when|what|can|will)\b",
    re.IGNORECASE,
)
_CHINESE = frozenset(
    "的了是在不有和之也而以其于於为為一这個个上人中大我他你到说要就出会可对者所与與及由应應或则則"
    "无無此乃曰矣乎焉何如若"
)
_ODD = frozenset("ÃÂâÐÑåäãæïð¼½¾¿¢¤¥¦¨©ª¬®¯±²³´µ¶¸¹º锟鈥銆鐨勭殑浠鍦鏄")
_MARKS = frozenset("*_#@\\/{}[]&%=+<>^~$")
_URL = re.compile(r"(?:https?://|www\.)[!-~]+")

_SPACE, _SMALL, _CAPITAL, _WIDE, _FUNCTION, _DIGIT, _MARK, _SYMBOL, _BAD, _ODD_LETTER = range(10)

#: Code points from this on are bad characters: their planes have no letters.
_CLASSED = 0x40000


class RuleScorer:
    """Scores by `RULES`: counts of character classes, for many sentences at once."""

    def score(self, sentences: Sequence[str]) -> Float32:
        """The score of each sentence, 0 (bad) to 1 (good); 0 for white space: [sentences]."""
        parts = [self._score(batch) for batch in batches(sentences)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def _score(self, sentences: Sequence[str]) -> Float32:
        found = features(sentences)
        score = np.ones(len(sentences))
        for name, weight, start, full in RULES:
            score -= weight * np.clip((found[name] - start) / (full - start), 0, 1)
        score[found["empty"] > 0] = 0
        rounded: Float32 = np.maximum(score, 0).astype(np.float32)
        return rounded


def features(sentences: Sequence[str]) -> dict[str, Float64]:
    """The features of `RULES`, and ``empty`` (1 if there is only white space).

    Returns:
        Name of the feature -> its value for each sentence [sentences].
    """
    # The mark of a heading, a list item or a quotation is no sign of quality.
    sentences = [sentence.lstrip("#>*-+ \t\r\n") for sentence in sentences]
    text = characters(sentences)
    kinds = _classes()[np.minimum(text.points, _CLASSED - 1)]
    owners = text.owners()
    count = len(sentences)
    table = np.bincount(owners * 10 + kinds, minlength=count * 10).reshape(count, 10).T
    wide = table[_WIDE] + table[_FUNCTION]
    spaced = table[_SMALL] + table[_CAPITAL] + table[_ODD_LETTER]
    solid = np.maximum(table[1:].sum(axis=0), 1)
    size = spaced + 3 * wide
    weight = solid + 2 * wide
    words = np.maximum(_starts(text, kinds), 1)
    mixed = _follow(text, kinds == _CAPITAL, kinds == _SMALL, owners)
    return {
        "empty": (table[1:].sum(axis=0) == 0).astype(np.float64),
        "short": np.clip(1 - size / 12, 0, 1),
        "symbols": table[_SYMBOL] / solid,
        "digits": table[_DIGIT] / weight,
        "no_letters": 1 - size / weight,
        "capitals": np.where(spaced >= 10, table[_CAPITAL] / np.maximum(size, 1), 0),
        "mixed_case": np.where(spaced >= 10, mixed / np.maximum(size, 1), 0),
        "repeats": _repeats(text, kinds, owners) / solid,
        "urls": _url_characters(sentences) / solid,
        "undecodable": table[_BAD] / solid,
        "odd_letters": table[_ODD_LETTER] / solid,
        "long_words": np.where(wide == 0, spaced / words, 0),
        "spaced_out": np.where((wide == 0) & (spaced >= 8), words / np.maximum(spaced, 1), 0),
        "no_end": _no_end(text, kinds).astype(np.float64),
        "no_function_words": _no_function_words(sentences, table[_FUNCTION], wide, spaced),
    }


def _no_function_words(
    sentences: Sequence[str], function: Int64, wide: Int64, spaced: Int64
) -> Float64:
    """1 for a long sentence without function words: [sentences].

    The value rises from 0 at size 30 to 1 at size 60. It is 0 if there are function words, or if
    the language is neither English nor Chinese.
    """
    import pyarrow.compute as pc

    size = spaced + 3 * wide
    lacking = np.zeros(len(sentences))
    lacking[(2 * wide > spaced) & (function == 0)] = 1
    latin = np.flatnonzero((wide == 0) & (size > 30))
    if len(latin):
        some = pa.array([sentences[i] for i in latin.tolist()], pa.large_string())
        # Text with letters beyond ASCII is most likely not English.
        english = pc.string_is_ascii(some).to_numpy(zero_copy_only=False)
        has = pc.match_substring_regex(some, f"(?i){_ENGLISH.pattern}")
        lacking[latin] = english & ~has.to_numpy(zero_copy_only=False)
    scaled: Float64 = lacking * np.clip((size - 30) / 30, 0, 1)
    return scaled


def _starts(text: Characters, kinds: npt.NDArray[np.uint8]) -> Int64:
    """The number of words, which are runs of characters other than white space: [strings]."""
    solid = kinds != _SPACE
    first = solid.copy()
    first[1:] &= ~solid[:-1]
    inner = text.starts[:-1][np.diff(text.starts) > 0]
    first[inner] = solid[inner]
    return _sums(text, first)


def _follow(
    text: Characters, these: npt.NDArray[np.bool_], those: npt.NDArray[np.bool_], owners: Int64
) -> Int64:
    """The number of characters in `these` that follow one in `those`: [strings]."""
    both = np.zeros(len(these), dtype=bool)
    both[1:] = these[1:] & those[:-1] & (owners[1:] == owners[:-1])
    return _sums(text, both)


def _repeats(text: Characters, kinds: npt.NDArray[np.uint8], owners: Int64) -> Int64:
    """The number of characters equal to the one a fixed distance before: [strings].

    Of the distances 1 to 4, the one with the most such characters counts.
    """
    most = np.zeros(len(text.starts) - 1, dtype=np.int64)
    for lag in range(1, 5):
        same = np.zeros(len(text.points), dtype=bool)
        same[lag:] = text.points[lag:] == text.points[:-lag]
        same[lag:] &= (owners[lag:] == owners[:-lag]) & (kinds[lag:] != _SPACE)
        most = np.maximum(most, _sums(text, same))
    return most


def _no_end(text: Characters, kinds: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether a string does not end in a punctuation mark, white space aside: [strings]."""
    running = np.concatenate([[-1], np.where(kinds != _SPACE, np.arange(len(kinds)), -1)])
    last = np.maximum.accumulate(running)[text.starts[1:]]
    some = last >= text.starts[:-1]
    ends = np.zeros(len(last), dtype=bool)
    ends[some] = kinds[last[some]] == _MARK
    return ~ends


def _sums(text: Characters, flags: npt.NDArray[np.bool_]) -> Int64:
    """The number of flags that are set in each string: [strings]."""
    running = np.concatenate([[0], np.cumsum(flags)])
    counts: Int64 = running[text.starts[1:]] - running[text.starts[:-1]]
    return counts


def _url_characters(sentences: Sequence[str]) -> Int64:
    return np.array(
        [
            sum(map(len, _URL.findall(sentence))) if "://" in sentence or "www." in sentence else 0
            for sentence in sentences
        ],
        dtype=np.int64,
    )


@lru_cache(maxsize=1)
def _classes() -> npt.NDArray[np.uint8]:
    """The class of each code point: [_CLASSED]."""
    wide = re.compile(rf"[{CJK}]")
    kinds = np.full(_CLASSED, _BAD, dtype=np.uint8)
    by_category = {"Z": _SPACE, "L": _SMALL, "M": _SMALL, "N": _DIGIT, "P": _MARK, "S": _SYMBOL}
    for point in range(_CLASSED - 1):
        character = chr(point)
        category = unicodedata.category(character)
        kind = by_category.get(category[0], _BAD)
        if kind == _SMALL and wide.match(character):
            kind = _FUNCTION if character in _CHINESE or "ぁ" <= character <= "ん" else _WIDE
        elif category in ("Lu", "Lt"):
            kind = _CAPITAL
        kinds[point] = kind
    for character in "\t\n\r\v\f\x85\u200b\u200c\u200d\ufeff\u00ad\u2060":
        kinds[ord(character)] = _SPACE
    for characters_, kind in ((_MARKS, _SYMBOL), (_ODD, _ODD_LETTER)):
        for character in characters_:
            kinds[ord(character)] = kind
    kinds[0xFFFD] = _BAD
    return kinds
