"""Split text into paragraphs and sentences, joined again without loss.

Blocks that are not prose (code, tables, headings, addresses: `markup.blocks`) are paragraphs of
one piece each, without prose. In the text between them no sentence ends inside a link, a picture,
code, a formula or an emphasis (`markup.spans`).

Nothing here depends on the language that is stated. The text between blocks is split so:

A line feed ends a paragraph before a blank line, after a CJK character (CJK text is not wrapped),
and after a line of `WIDE` characters or more (text is not wrapped at such a width). Other line
feeds come from wrapping, or separate the lines of a list within one paragraph.

A sentence ends at 。！？ and ． together with closing brackets and quotes after them. It also ends
at . ! ? … before white space, unless the next letter is a small one, or the full stop follows an
abbreviation or an initial. Inside a paragraph, a line feed ends a sentence if the line was too
short to have been wrapped, if the indentation changes, or if a list item begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from bc2.data.prep.text.markup.block import BlockKind
from bc2.data.prep.text.markup.blocks import blocks
from bc2.data.prep.text.markup.spans import Spans, find_spans, without
from bc2.data.prep.text.recent import Recent

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
_CLOSERS = r"[\"'”’」』）》〉】〕)\]}*_]*+"

#: The pattern begins with one set of characters, so that the search can skip all others. The empty
#: group tells which case matched. A run of marks is tried once, from its first.
_SENTENCE_END = re.compile(
    r"[。！？｡．.!?…\n](?:"
    rf"(?:(?<=[。！？｡])|(?<=．)(?![0-9０-９]))[。！？｡．.!?…]*+{_CLOSERS}\s*+(?P<cjk>)"
    rf"|(?<=[.!?…])(?<![.!?…][.!?…])[.!?…]*+{_CLOSERS}\s++(?P<latin>)"
    r"|(?<=\n)\s*+(?P<line>))"
)

#: What a piece at the beginning of a line begins with, and what stays if the piece is cut and the
#: rest of its line stays: the marks of quotations, list items and footnotes.
_PREFIX = re.compile(
    r"\A[ \t]*+(?:>[ \t]?)*+(?:(?:[-*+•]|\d{1,9}[.)])[ \t]++)?(?:\[[ xX]\][ \t]++)?"
    r"(?:\[\^[^\]\n]{1,80}\]:[ \t]++)?"
)

#: A list item, a heading, a quotation, a row of a table.
_ITEM = re.compile(
    r"(?:[-*+•‣·◦●○■]|\(?\d{1,3}[.)、]|\(?[a-zA-Z][.)]|[#>|=~]+)(?:\s|$)"
    r"|[（(]?[一二三四五六七八九十]{1,3}[)）、]|第.{1,6}[条章节]|```|\.\. "
)

_WORD = re.compile(r"[^\s(\[{\"'“‘「『（—–]*\Z")
_INITIAL = re.compile(r"\A(?:[^\W\d_]\.)*[^\W\d_]\Z")

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


#: Characters of texts whose paragraphs are remembered: a part of 32 MiB has fewer.
_REMEMBERED = 40_000_000

#: More characters are prose, even if all are emphasised.
_LONGEST_TITLE = 100

#: Code within a line.
_CODE = re.compile(r"`[^`]+`")

#: What tables and headings are drawn with.
_MARKS = re.compile(r"[|#+=]|[-:=~]{2,}|\]\([^()\n]*\)|<[^<>\n]*>|\[")

#: A line without letters or digits, or that says whom the words above it are by; and one that
#: announces what follows it.
_BARE = re.compile(r"^(?:[^\w\n]++|[ \t]*+(?:--|——)[ \t]*+[^\n。！？.!?]{1,60})\n", re.MULTILINE)
_LABEL = re.compile(r"^:?[^\n:：]{1,40}(?:::?|：)[ \t]*\n", re.MULTILINE)

#: A line of at most so many characters that introduces the code or table after it.
_LONGEST_LEAD = 40

_CONTENT = (BlockKind.CODE, BlockKind.TABLE, BlockKind.HEADING)
_INTRODUCED = (BlockKind.CODE, BlockKind.TABLE, BlockKind.ADDRESS)


class Paragraph(NamedTuple):
    """A paragraph, or a block that is not prose, with the line feeds and blank lines after it."""

    sentences: list[str]
    """The pieces of its text; one for a block."""
    prose: list[str]
    """What is prose in each: without marks, links' targets, code; empty for a block."""
    is_text: bool
    """Whether it is a paragraph and not a block."""

    @property
    def text(self) -> str:
        """The text of the paragraph."""
        return "".join(self.sentences)


def divide(text: str) -> Sequence[Paragraph]:
    """The paragraphs and blocks of a text; their pieces, one after the other, are the text.

    Those of the last texts, `_REMEMBERED` characters in all, are remembered: about four bytes for
    each.
    """
    return _divided(text)


def _divide(text: str) -> Sequence[Paragraph]:
    found: list[Paragraph] = []
    for start, end, kind in blocks(text):
        piece = text[start:end]
        if kind is BlockKind.TEXT:
            found += _paragraphs(piece)
        else:
            found.append(Paragraph([piece], [""], False))
    return found


_divided = Recent(_divide, lambda text, found: len(text), _REMEMBERED)


def code_paragraphs(text: str) -> Sequence[Paragraph]:
    """The paragraphs of source code, one piece each: they end at blank lines."""
    pieces = _pieces(text, (match.end() for match in _PARAGRAPH_END.finditer(text)))
    return [Paragraph([piece], [piece], True) for piece in pieces]


def _paragraphs(text: str) -> Iterator[Paragraph]:
    spans = find_spans(text)
    ends: Iterable[int] = (match.end() for match in _PARAGRAPH_END.finditer(text))
    start = 0
    for piece in _pieces(text, spans.outside(ends)):
        mine = spans.within(start, start + len(piece))
        sentences = _pieces(piece, mine.outside(_sentence_ends(piece)))
        yield Paragraph(sentences, _prose(piece, sentences, mine), True)
        start += len(piece)


def _prose(text: str, sentences: list[str], spans: Spans) -> list[str]:
    """What is prose in each sentence of a paragraph.

    A link or an emphasis alone on its line is a title, no prose. Neither is a sentence that has
    more code than other letters, such as a list of names.
    """
    if not spans.hidden and not spans.code:
        return sentences
    hidden = sorted(spans.hidden + spans.code)
    prose, start = [], 0
    for sentence in sentences:
        end = start + len(sentence)
        shown = without(text, hidden, start, end)
        if len(shown) < len(sentence):
            around = without(text, spans.together, start, end)
            marked = len(around) < len(sentence)
            prose.append("" if marked and _is_no_prose(sentence, around, shown) else shown)
        else:
            prose.append(sentence)
        start = end
    return prose


def _is_no_prose(sentence: str, around: str, shown: str) -> bool:
    """See `_prose`.

    Args:
        around: what is outside of spans.
        shown: what is not hidden.
    """
    if len(shown) < _LONGEST_TITLE and not any(map(str.isalpha, around)):
        return True
    if "`" not in sentence:
        return False
    letters = "".join(filter(str.isalpha, around))  # in bytes, of which an ideograph has three
    return len(letters.encode()) < sum(map(len, _CODE.findall(sentence)))


def split_paragraphs(text: str) -> list[str]:
    """The paragraphs and blocks of a text, each with the line feeds and blank lines after it."""
    return [paragraph.text for paragraph in divide(text)]


def split_sentences(text: str) -> list[str]:
    """The sentences and blocks of a text."""
    return [piece for paragraph in divide(text) for piece in paragraph.sentences]


def prose_sentences(text: str) -> list[str]:
    """What is prose in each sentence of a text, if it has a letter or a number."""
    prose = (piece for paragraph in divide(text) for piece in paragraph.prose)
    return [piece for piece in prose if any(map(str.isalnum, piece))]


def prose_of(text: str) -> str:
    """A text without its blocks and without what is hidden in the rest; itself if it has neither.

    The marks of list items stay. Where a block was, paragraphs stay apart. Labels are no prose,
    nor is a short line before code, a table or a picture: a text says "run this command" as often
    as it shows one.
    """
    parts: list[str] = []
    lead = False
    for start, end, kind in blocks(text):
        if kind is BlockKind.TEXT:
            piece = text[start:end]
            # Without their formulas, sentences about different things would be the same.
            hidden = [each for each in find_spans(piece).hidden if piece[each[0]] != "$"]
            shown = without(piece, hidden, 0, len(piece))
            parts.append(_LABEL.sub("", _BARE.sub("", shown)))
        else:
            if lead and kind in _INTRODUCED:
                parts[-1] = _without_lead(parts[-1])
            parts.append("\n")
        lead = kind is BlockKind.TEXT
    return "".join(parts)


def _without_lead(prose: str) -> str:
    """A text without its last line, if that is short and stands alone."""
    bare = prose.rstrip()
    above, feed, line = bare.rpartition("\n")
    if len(line) > _LONGEST_LEAD or (feed and above.rpartition("\n")[2].strip()):
        return prose
    return above + feed


def content_of(text: str) -> str:
    """The blocks of a text in which its author says something: code, tables, headings."""
    return "".join(text[start:end] for start, end, kind in blocks(text) if kind in _CONTENT)


def code_of(text: str) -> str:
    """The blocks of code of a text."""
    return "".join(text[start:end] for start, end, kind in blocks(text) if kind is BlockKind.CODE)


def listed_in(text: str) -> str:
    """The words of the tables and headings of a text, without marks; "" if it has code."""
    parts = []
    for start, end, kind in blocks(text):
        if kind is BlockKind.CODE:
            return ""
        if kind in (BlockKind.TABLE, BlockKind.HEADING):
            parts.append(_MARKS.sub(" ", text[start:end]))
    return "".join(parts)


def cut_sentences(text: str, keep: Sequence[bool]) -> str:
    """A text without some of its sentences: see `joined`.

    Args:
        keep: a flag for each of ``split_sentences(text)``.
    """
    return joined(divide(text), keep)


def joined(paragraphs: Iterable[Paragraph], keep: Iterable[bool]) -> str:
    """The text of paragraphs without some of their sentences.

    What was apart stays apart: the white space at the end of a paragraph stays if any of its
    sentences stays, and a blank line after a paragraph that is cut stays if there is none before
    it. Otherwise a line of text could become a heading, and code could become text. White space on
    one side of a cut stays, so that words remain separate. The mark of a list item or a quotation
    stays before the rest of it.

    Args:
        keep: a flag for each sentence, one paragraph after the other.
    """
    kept: list[str] = []
    flags = iter(keep)
    for paragraph in paragraphs:
        pieces = paragraph.sentences
        left: list[str] = []
        mark, stays = "", False
        for at, piece in enumerate(pieces):
            begins_line = not at or pieces[at - 1].endswith("\n")
            stays = next(flags)
            if stays:
                left.append(piece if begins_line else mark + piece)
                mark = ""
            elif begins_line:
                mark = _mark(piece)
        if stays:
            kept += left
            continue
        end = _white_end(pieces[-1])
        if left:
            left[-1] = left[-1].rstrip() + end
            kept += left
        elif kept and _white_end(kept[-1]).count("\n") < end.count("\n"):
            kept[-1] = kept[-1].rstrip() + end
    return "".join(kept)


def _white_end(piece: str) -> str:
    """The white space at the end of a piece."""
    return piece[len(piece.rstrip()) :]


def _mark(piece: str) -> str:
    """The mark of a list item or quotation with which a piece begins, with its indentation."""
    prefix = _PREFIX.match(piece)
    return prefix.group() if prefix and prefix.group().strip() else ""


def _pieces(text: str, ends: Iterable[int]) -> list[str]:
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
