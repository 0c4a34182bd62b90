"""Split texts into paragraphs and sentences, and cut sentences out of texts.

Every split is exact: the pieces joined are the text, no piece is empty, and each has a character
that is not white space (unless the whole text has none). White space after a piece belongs to the
piece. A paragraph is a whole number of sentences. The split depends on the text alone, not on its
stated language.

A line feed ends a paragraph before a blank line, after a CJK character (CJK text is not wrapped),
and after a line of `WIDE` characters or more (text is not wrapped at such a width). Other line
feeds come from wrapping, or separate the lines of a list or of code within one paragraph.

A sentence ends at 。！？ and ． together with closing brackets and quotes after them. It also ends
at . ! ? … before white space, unless the next letter is a small one, or the full stop follows an
abbreviation or an initial. Inside a paragraph, a line feed ends a sentence if the line was too
short to have been wrapped, if the indentation changes, or if a list item begins. So most lines of
code are sentences too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

#: A line of at least so many characters is not wrapped text, so its end is the end of a paragraph.
WIDE = 120

#: A line of fewer characters was not ended by wrapping.
NARROW = 40

#: Characters of scripts without spaces and their punctuation, as ranges for the brackets of a
#: regular expression: radicals, kana, ideographs of the first planes, full-width forms.
CJK = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"

#: Characters that may be between a CJK character and the end of its line.
_TAIL = r"[\"'”’…—)\]*_ \t\r]"

_PARAGRAPH_END = re.compile(
    rf"\n(?:(?<=[{CJK}]\n)|(?<=[{CJK}]{_TAIL}\n)|(?<=[{CJK}]{_TAIL}{_TAIL}\n)"
    rf"|(?<=[^\n]{{{WIDE}}}\n)|(?=[^\S\n]*\n))(?:[^\S\n]*\n)*"
)

#: Closing quotes and brackets of both scripts; straight quotes are taken as closing.
_CLOSERS = r"[\"'”’」』）》〉】〕)\]}*_]*"

#: The pattern begins with one set of characters, so that the search can skip all others. The empty
#: group tells which case matched.
_SENTENCE_END = re.compile(
    r"[。！？｡．.!?…\n](?:"
    rf"(?:(?<=[。！？｡])|(?<=．)(?![0-9０-９]))[。！？｡．!?…]*{_CLOSERS}\s*(?P<cjk>)"
    rf"|(?<=[.!?…])[.!?…]*{_CLOSERS}\s+(?P<latin>)"
    r"|(?<=\n)\s*(?P<line>))"
)

#: A list item, a heading, a quotation, a row of a table.
_ITEM = re.compile(
    r"(?:[-*+•‣·◦●○■]|\(?\d{1,3}[.)、]|\(?[a-zA-Z][.)]|[#>|=~]+)(?:\s|$)"
    r"|[（(]?[一二三四五六七八九十]{1,3}[)）、]|第.{1,6}[条章节]|```|\.\. "
)

_WORD = re.compile(r"[^\s(\[{\"'“‘「『（—–]*\Z")
_INITIAL = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]\Z")

#: English abbreviations that seldom end a sentence, without their full stop.
_ABBREVIATIONS = frozenset(
    re.split(
        r"\s+",
        "mr mrs ms dr prof rev hon st messrs mme mlle sr jr gen col capt lt sgt maj gov sen rep "
        "pres adm esq vs viz eg ie cf al ca approx no nos vol vols fig figs eq eqs sec ch pp ed "
        "eds art par dept univ assn inc ltd co corp jan feb mar apr jun jul aug sep sept oct nov "
        "dec mt ft ave blvd rd ibid op cit vid ph.d",
    )
)


def split_paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, each with the line feeds and blank lines after it."""
    return _pieces(text, (match.end() for match in _PARAGRAPH_END.finditer(text)))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text: those of its paragraphs, one after the other."""
    return [piece for paragraph in split_paragraphs(text) for piece in sentences_of(paragraph)]


def sentences_of(paragraph: str) -> list[str]:
    """The sentences of one paragraph, which must come from `split_paragraphs`."""
    return _pieces(paragraph, _sentence_ends(paragraph))


def cut_sentences(text: str, keep: Sequence[bool]) -> str:
    """A text without some of its sentences.

    The white space at the end of a paragraph stays if any of its sentences stays, so that
    paragraphs remain separate. White space on one side of a cut stays, so that words remain
    separate.

    Args:
        keep: a flag for each of ``split_sentences(text)``.
    """
    kept: list[str] = []
    flags = iter(keep)
    for paragraph in split_paragraphs(text):
        pieces = sentences_of(paragraph)
        left = [piece for piece in pieces if next(flags)]
        if left and left[-1] is not pieces[-1]:
            end = pieces[-1][len(pieces[-1].rstrip()) :]
            left[-1] = left[-1].rstrip() + end
        kept += left
    return "".join(kept)


def _pieces(text: str, ends: Iterator[int]) -> list[str]:
    """The text cut at `ends` (ascending); white space alone is joined to a neighbouring piece."""
    pieces: list[str] = []
    start = 0
    for end in ends:
        piece = text[start:end]
        if piece and not piece.isspace():
            pieces.append(piece)
            start = end
    rest = text[start:]
    if not rest:
        return pieces
    if pieces and rest.isspace():
        pieces[-1] += rest
        return pieces
    return [*pieces, rest]


def _sentence_ends(text: str) -> Iterator[int]:
    for match in _SENTENCE_END.finditer(text):
        end = match.end()
        if match.lastgroup == "line":
            if _line_ends(text, match.start()):
                # indentation belongs to the next line, as it does in code
                yield text.rfind("\n", match.start(), end) + 1
        elif match.lastgroup == "cjk" or _latin_ends(text, match):
            last = text.rfind("\n", match.start(), end)
            yield end if last < 0 else last + 1


def _latin_ends(text: str, match: re.Match[str]) -> bool:
    """Whether a run of . ! ? … before white space ends a sentence."""
    end = match.end()
    if end == len(text):
        return True
    first = text[match.start()]
    if first == "." and match.group().rstrip() == ".":
        word = _WORD.search(text, max(0, match.start() - 20), match.start())
        before = word.group() if word else ""
        if before.lower() in _ABBREVIATIONS or _INITIAL.match(before):
            return "\n" in match.group() and _line_ends(text, text.index("\n", match.start()))
        if _is_number_of_item(text, match.start(), before):
            return False
    if text[end].islower():
        return "\n" in match.group() and _line_ends(text, text.index("\n", match.start()))
    return True


def _is_number_of_item(text: str, stop: int, before: str) -> bool:
    """Whether a full stop follows the number of a list item: ``2. Press the button.``"""
    start = stop - len(before)
    return (
        before.isdigit()
        and len(before) < 4
        and not text[text.rfind("\n", 0, start) + 1 : start].strip()
    )


def _line_ends(text: str, feed: int) -> bool:
    """Whether the line feed at `feed`, inside a paragraph, ends a sentence too."""
    start = text.rfind("\n", 0, feed) + 1
    if feed - start < NARROW:
        return True
    line = text[start:feed]
    stop = text.find("\n", feed + 1)
    following = text[feed + 1 : stop if stop >= 0 else len(text)]
    bare = following.lstrip()
    if not bare or line[-1] in "{};|":
        return True
    if len(line) - len(line.lstrip()) != len(following) - len(bare):
        return True
    return _ITEM.match(bare) is not None
