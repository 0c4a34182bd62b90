"""Limits of the heuristic rules for each language group: [corpus.heuristics]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bc2.recipe import Settings

#: A limit, or ``false`` where the rule is off.
Count = Annotated[int, Field(ge=0)] | Literal[False]
Number = Annotated[float, Field(ge=0)] | Literal[False]
Share = Annotated[float, Field(ge=0, le=1)] | Literal[False]

#: Length n of the n-grams, in words -> the largest share allowed; empty if the rule is off.
Shares = dict[Annotated[int, Field(ge=1, le=64)], Annotated[float, Field(ge=0, le=1)]]


class FormRules(Settings):
    """The rules about a document's form, for one language group.

    A document fails if its number is below a ``min_`` limit or above a ``max_`` limit; the rule's
    key is the reason. ``false`` switches a rule off. A word is a CJK character, or a run of other
    characters that ends at white space or a CJK character. Shares of characters count only
    characters that are not white space.
    """

    min_words: Count = False
    """The fewest words (Gopher, Rae et al. 2021, appendix A.1: 50)."""

    max_words: Count = False
    """The most words within the first `head` characters (Gopher: 100,000, which is less than some
    books)."""

    min_word_length: Number = False
    """The shortest mean word, in characters (Gopher: 3)."""

    max_word_length: Number = False
    """The longest mean word, in characters (Gopher: 10)."""

    max_symbol_ratio: Number = False
    """Hash signs per word, or ellipses per word if there are more of them (Gopher: 0.1)."""

    max_digit_ratio: Share = False
    """Share of characters that are digits."""

    min_alphabetic_words: Share = False
    """Share of words with at least one letter; bullets of list items do not count (Gopher: 0.8)."""

    min_alphanumeric_ratio: Share = False
    """Share of characters that are letters or digits (Codex, Chen et al. 2021, and the Stack)."""

    min_stop_words: Count = False
    """How many different words of these eight the text has: the, be, to, of, and, that, have, with
    (Gopher: 2)."""

    min_terminal_lines: Share = False
    """Share of lines that end in a terminal mark or a closing quotation mark, or in which a
    sentence ends; and of those of ten words that end in a colon. If the share of paragraphs that
    end so is higher, it counts instead, because in wrapped text sentences have several lines (C4;
    FineWeb, Penedo et al. 2024: 0.12 of lines that end in a mark)."""

    max_bullet_lines: Share = False
    """Share of lines that begin with a bullet and are no sentences: without a terminal mark, and of
    fewer than ten words (Gopher, for all lines with bullets: 0.9)."""

    max_ellipsis_lines: Share = False
    """Share of lines that end in an ellipsis (Gopher: 0.3)."""

    short_line: int = Field(30, ge=1)
    """A line with fewer characters than this is short (FineWeb: 30)."""

    max_short_lines: Share = False
    """Share of characters in lines that are short. FineWeb counts lines (0.67), and drops articles
    with a long list of short items for it."""

    max_lines_per_word: Number = False
    """Lines per word; high in lists and tables of contents (FineWeb: 0.3)."""

    max_duplicate_lines: Share = False
    """Share of lines that have the same words as an earlier line (Gopher: 0.3)."""

    max_duplicate_line_characters: Share = False
    """Share of the characters of words that are in such lines (Gopher: 0.2)."""

    max_duplicate_paragraphs: Share = False
    """Share of paragraphs that have the same words as an earlier paragraph (Gopher: 0.3)."""

    max_duplicate_paragraph_characters: Share = False
    """Share of the characters of words that are in such paragraphs (Gopher: 0.2)."""

    max_top_ngrams: Shares = Field(default_factory=dict)
    """n -> share of the characters of words that are in the most frequent n-gram, if it occurs
    eight times or more (Gopher: twice or more; 2, 3 and 4 words, 0.20, 0.18 and 0.16)."""

    max_duplicate_ngrams: Shares = Field(default_factory=dict)
    """n -> share of the characters of words that are in any n-gram that occurs more than once;
    overlaps count once (Gopher: 5 to 10 words, 0.15 to 0.10)."""

    max_encoded_ratio: Share = False
    """Share of characters in runs of 64 or more ASCII letters, digits, + and /: base64 and hex."""

    max_mean_line: Number = False
    """The longest mean length, in characters, of the lines that are not blank (Codex: 100)."""

    max_longest_line: Count = False
    """Characters of the longest line (Codex: 1,000)."""

    max_boilerplate_lines: Share = False
    """Share of lines with a phrase of
    `bc2.data.prep.text.boilerplate_phrases.BOILERPLATE`, such as "enable JavaScript"
    or 版权所有 (C4, Raffel et al. 2020, section 2.2)."""

    lorem_ipsum: bool = False
    """Drop documents with more than a quarter of their characters in lines of the filler text
    "lorem ipsum" (C4: any document with it)."""

    autogenerated: bool = False
    """Drop documents whose first 1,000 characters say that a program wrote them."""


class EnglishRules(FormRules):
    """[corpus.heuristics.en]: the thresholds of Gopher and FineWeb, some of them less strict.

    Theirs were set for web pages. Reference documentation says the same of each of its functions:
    up to 79% of its characters are in repeated 5-grams, 42% of its lines are repeated, and in
    articles of 100 words a term of four words is 24% of the characters. Stuffed and repeated pages
    have more of each. Words are longer where functions are named (up to 10.4 on average; in lists
    of functions 12 and more). Of documents with 40 to 49 words, code and tables included, half are
    whole: a section of a manual, an option with its example.
    """

    min_words: Count = 40
    min_word_length: Number = 3.0
    max_word_length: Number = 11.0
    max_symbol_ratio: Number = 0.1
    max_digit_ratio: Share = 0.3
    min_alphabetic_words: Share = 0.7
    min_stop_words: Count = 2
    min_terminal_lines: Share = 0.04
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    max_short_lines: Share = 0.5
    max_lines_per_word: Number = 0.3
    max_duplicate_lines: Share = 0.5
    max_duplicate_line_characters: Share = 0.4
    max_duplicate_paragraphs: Share = 0.5
    max_duplicate_paragraph_characters: Share = 0.35
    max_top_ngrams: Shares = Field({2: 0.20, 3: 0.22, 4: 0.28})
    max_duplicate_ngrams: Shares = Field({5: 0.80, 7: 0.76, 10: 0.73})
    max_encoded_ratio: Share = 0.1
    max_boilerplate_lines: Share = 0.2
    lorem_ipsum: bool = True


class ChineseRules(FormRules):
    """[corpus.heuristics.zh]: text in CJK characters, each of which is a word of an n-gram.

    No paper gives thresholds for such text. These keep statutes, classics, documentation and
    manuals, whose steps repeat. A line is a paragraph in such text, so both have equal limits.
    """

    min_words: Count = 20
    max_symbol_ratio: Number = 0.1
    max_digit_ratio: Share = 0.3
    min_alphabetic_words: Share = 0.6
    min_terminal_lines: Share = 0.05
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    short_line: int = Field(5, ge=1)
    max_short_lines: Share = 0.5
    max_duplicate_lines: Share = 0.5
    max_duplicate_line_characters: Share = 0.4
    max_duplicate_paragraphs: Share = 0.5
    max_duplicate_paragraph_characters: Share = 0.4
    max_top_ngrams: Shares = Field({4: 0.25, 8: 0.25})
    max_duplicate_ngrams: Shares = Field({10: 0.60, 20: 0.50})
    max_encoded_ratio: Share = 0.1
    max_boilerplate_lines: Share = 0.2
    lorem_ipsum: bool = True


class OtherRules(FormRules):
    """[corpus.heuristics.other]: other languages, and text of unknown language that is not zh."""

    min_words: Count = 20
    max_symbol_ratio: Number = 0.1
    max_digit_ratio: Share = 0.3
    min_alphabetic_words: Share = 0.6
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    max_duplicate_lines: Share = 0.3
    max_duplicate_line_characters: Share = 0.3
    max_duplicate_paragraphs: Share = 0.5
    max_duplicate_paragraph_characters: Share = 0.2
    max_top_ngrams: Shares = Field({2: 0.20, 3: 0.18, 4: 0.16})
    max_duplicate_ngrams: Shares = Field({5: 0.45, 10: 0.30})
    max_encoded_ratio: Share = 0.1
    max_boilerplate_lines: Share = 0.2
    lorem_ipsum: bool = True


class CodeRules(FormRules):
    """[corpus.heuristics.code]: source code, after Codex and the Stack (Kocetkov et al. 2022)."""

    min_words: Count = 10
    min_alphanumeric_ratio: Share = 0.25
    max_encoded_ratio: Share = 0.5
    max_mean_line: Number = 100.0
    max_longest_line: Count = 1000
    autogenerated: bool = True


class HeuristicsSettings(Settings):
    """[corpus.heuristics]: heuristic rules about a document's form, for each language group.

    The group is the beginning of a document's `lang`, if that is ``en``, ``zh`` or ``code`` (as in
    ``code-python``). Any other document, and one without a stated language, is ``zh`` if at least
    30% of its letters are CJK characters, else ``other``.
    """

    en: EnglishRules = EnglishRules()
    """English."""

    zh: ChineseRules = ChineseRules()
    """Chinese, and other text in CJK characters."""

    code: CodeRules = CodeRules()
    """Source code."""

    other: OtherRules = OtherRules()
    """Everything else."""

    head: int = Field(1 << 20, ge=1024, le=1 << 21)
    """The rules measure only so many characters from the beginning of a document; limits memory."""

    languages: tuple[str, ...] = ()
    """Identify the language, and drop documents in any other than these (`language`): ISO 639
    codes that py3langid knows. If empty, languages are not identified. Code is never identified."""

    min_confidence: float = Field(0.5, ge=0, le=1)
    """Least sum of the probabilities of the allowed languages. Chinese includes Wu and Cantonese,
    because classical prose is sometimes identified as one of them."""
