"""Find the spans of a text that belong together, and those that are not prose.

A span that belongs together is a link, a picture, a piece of code, a formula, an emphasis, a tag
or a URL: no sentence ends in it. What a reader does not read as prose is hidden: the marks of
emphasis, where a link leads, a picture, code, formulas, URLs.

Spans are those of Markdown and reStructuredText. Each character is looked at a bounded number of
times: openers wait on stacks, and a closer takes the nearest.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import filterfalse
from typing import NamedTuple

Range = tuple[int, int]

#: A text without a match has no spans.
_SIGN = re.compile(r"[`\[<*_$\\~{>]")

#: Spans end at blank lines, and before the next list item or row.
_BREAK = re.compile(r"\n[ \t>]*+(?=\n|(?:[-*+•]|\d{1,9}[.)])[ \t]|\|)")

#: The pattern begins with one set of characters, so that the search can skip all others.
_TOKEN = re.compile(
    r"[\\`$<{\[\]*_~](?:"
    r"(?P<escape>(?<=\\)[!-/:-@\[-`{-~])"
    r"|(?P<code>(?<=`)`*)"
    r"|(?P<math>(?<=\$)\$?)"
    r"|(?P<hidden>(?<=<)(?:(?:(?:https?|ftp|mailto):[^<>\s]*|[\w.+-]{1,64}@[\w.-]{1,64})>"
    r"|/?(?:a|b|br|i|em|strong|kbd|code|sub|sup|u|s|del|ins|mark|small|big|img|tt|var|ruby|rt|rp"
    r"|span|font|abbr|cite|dfn|samp|strike|p|li|div|h[1-6]|t[dhr]|d[dlt]|center|blockquote|summary"
    r"|details|ul|ol|section|article|figcaption)\b[^<>]{0,2000}>"
    r"|!--[^<>]{0,2000}-->)"
    r"|(?<=\{)(?:[{%][^{}\n]{0,500}[%}]|[^\s{}]{1,300})\})"
    r"|(?P<tag>(?<=<)/?[A-Za-z][^<>]{0,2000}>)"
    r"|(?P<open>(?<=\[))|(?P<close>(?<=\]))"
    r"|(?P<mark>(?<=\*)\**|(?<=_)_*|(?<=~)~))"
)

#: Elements within a line: the stroke of a closing tag, and the name.
_ELEMENT = re.compile(r"<(/?)(a|b|i|em|strong|kbd|code|sub|sup|u|s|del|mark|small|tt|var|span)\b")

_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'`，。；：！？、（）《》〈〉「」『』【】…]+")

#: The roles of reStructuredText before a piece of code: ``:func:``.
_ROLE = re.compile(r"(?::[\w.+-]{1,40}){1,3}:\Z")

#: What follows the brackets of a link: where it leads, with balanced brackets and a title.
_TARGET = re.compile(
    r"\([ \t\n]*+(?:<[^<>\n]*>|[^\s()<>]*+(?:\([^\s()]*+\)[^\s()]*+)*+)"
    r"(?:[ \t\n]++(?:\"[^\"]*\"|'[^']*'|\([^()]*\)))?[ \t\n]*+\)(?:\{[^{}\n]{0,200}\})?"
    r"|\([^()\n]{1,300}\)(?:\{[^{}\n]{0,200}\})?"
    r"|\[[^\[\]\n]{0,200}\]"
)

_QUOTE = re.compile(r"^[ \t]*>[ \t>]*", re.MULTILINE)
_TICKS = re.compile("`+")
_TRAILING = ".,;:!?)]*_~'\""

#: Characters of a formula within a line at most: a longer distance is between two prices.
_LONGEST_FORMULA = 500


class Spans(NamedTuple):
    """Ranges of characters, ascending and apart from each other."""

    together: list[Range]
    """No sentence ends inside one of these."""
    hidden: list[Range]
    """What is not prose: marks, targets of links, pictures, URLs, formulas."""
    code: list[Range]
    """Code within a line, of which only the marks are hidden."""

    def outside(self, places: Iterable[int]) -> Iterable[int]:
        """The places at which a cut leaves no half of a span."""
        return filterfalse(self._splits, places) if self.together else places

    def _splits(self, at: int) -> bool:
        place = bisect_left(self.together, (at,)) - 1
        return place >= 0 and at < self.together[place][1]

    def within(self, start: int, end: int) -> Spans:
        """The spans that lie in text[start:end], counted from there."""
        return Spans(*(_within(ranges, start, end) for ranges in self)) if any(self) else self


def _within(ranges: list[Range], start: int, end: int) -> list[Range]:
    first = bisect_left(ranges, (start,))
    if first == len(ranges) or ranges[first][0] >= end:
        return []
    last = bisect_left(ranges, (end,), first)
    return [(a - start, b - start) for a, b in ranges[first:last]]


def find_spans(text: str) -> Spans:
    """The spans of a text without blocks of code, tables or headings."""
    if _SIGN.search(text) is None and "://" not in text and "www." not in text:
        return Spans([], [], [])
    finder = _Finder(text)
    first = 0
    for match in _BREAK.finditer(text):
        finder.read(first, match.start())
        first = match.end()
    finder.read(first, len(text))
    finder.urls()
    finder.hidden += [match.span() for match in _QUOTE.finditer(text)]
    return Spans(_merged(finder.together), _merged(finder.hidden), finder.code)


def without(text: str, hidden: list[Range], start: int, end: int) -> str:
    """The characters of text[start:end] that are not hidden."""
    # Not by islice, which would walk over all that is before.
    reached = max(0, bisect_left(hidden, (start,)) - 1)
    parts = []
    for place in range(reached, bisect_left(hidden, (end,))):
        first, last = hidden[place]
        if last > start:
            parts.append(text[start : max(start, first)])
            start = min(last, end)
    parts.append(text[start:end])
    return "".join(parts)


def _merged(ranges: list[Range]) -> list[Range]:
    """Ranges joined where they overlap."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged


def _in_word(character: str) -> bool:
    """Whether a character is of a word or number written in ASCII; other scripts have no spaces."""
    return character.isascii() and character.isalnum()


class _Finder:
    """Reads tokens of one paragraph or list item after another."""

    def __init__(self, text: str):
        self._text = text
        self.together: list[Range] = []
        self.hidden: list[Range] = []
        self.code: list[Range] = []

    def read(self, start: int, end: int) -> None:
        """Find the spans of text[start:end]."""
        text = self._text
        match = _TOKEN.search(text, start, end)
        if match is None:
            return
        self._end = end
        self._brackets: list[Range] = []
        self._marks: dict[str, list[Range]] = {"*": [], "_": [], "~": []}
        self._dollars: dict[int, int] = {}
        self._elements: dict[str, int] = {}
        self._ticks: dict[int, list[int]] | None = None
        while match:
            match = _TOKEN.search(text, self._take(match), end)

    def _take(self, match: re.Match[str]) -> int:
        """Use one token; return where to go on."""
        start, end = match.span()
        match match.lastgroup:
            case "escape":
                self.hidden.append((start, start + 1))
            case "code":
                return self._code(start, end)
            case "math":
                self._math(start, end)
            case "hidden":
                self._hide(start, end)
                if self._text[start] == "<":
                    self._element(start, end)
            case "tag":
                self.together.append((start, end))
            case "open":
                self._brackets.append((start - (self._text[start - 1 : start] == "!"), end))
            case "close":
                return self._close(end)
            case "mark":
                self._emphasis(start, end)
        return end

    def urls(self) -> None:
        """Hide URLs; marks after one are not part of it."""
        if "://" not in self._text and "www." not in self._text:
            return
        for match in _URL.finditer(self._text):
            bare = match.group().rstrip(_TRAILING)
            end = match.start() + len(bare)
            balanced = bare.count("(") == bare.count(")") + 1
            self._hide(match.start(), end + (balanced and self._text[end : end + 1] == ")"))

    def _hide(self, start: int, end: int) -> None:
        self.together.append((start, end))
        self.hidden.append((start, end))

    def _code(self, start: int, end: int) -> int:
        """From one run of backticks to the next run of the same length."""
        text = self._text
        if self._ticks is None:
            self._ticks = {}
            for run in _TICKS.finditer(text, start, self._end):
                self._ticks.setdefault(run.end() - run.start(), []).append(run.start())
        closers = self._ticks.get(end - start, [])
        place = bisect_right(closers, end - 1)
        if place == len(closers):
            return end
        closer = closers[place]
        last = closer + end - start
        while last < self._end and text[last] == "_":  # a reference of reStructuredText
            last += 1
        begin = start
        if text[start - 1 : start] == ":" and (
            role := _ROLE.search(text, max(0, start - 90), start)
        ):
            begin = role.start()
        self.together.append((begin, last))
        self.hidden += [(begin, end), (closer, last)]
        self.code.append((end, closer))
        return last

    def _element(self, start: int, end: int) -> None:
        """A tag of an element within a line, which belongs together."""
        tag = _ELEMENT.match(self._text, start)
        if tag is None:
            return
        if not tag[1]:
            self._elements[tag[2]] = start
        elif (opened := self._elements.pop(tag[2], None)) is not None:
            self.together.append((opened, end))

    def _math(self, start: int, end: int) -> None:
        """A formula: between dollar signs that touch it and stand outside words and numbers."""
        text, size = self._text, end - start
        before, after = text[start - 1 : start], text[end : end + 1]
        opened = self._dollars.pop(size, None)
        closes = not _in_word(after) and (size == 2 or not before.isspace())
        if opened is not None and closes and start - opened < _LONGEST_FORMULA * size:
            self._hide(opened, end)
        elif not _in_word(before) and (size == 2 or (after and not after.isspace())):
            self._dollars[size] = start

    def _close(self, end: int) -> int:
        """A closing bracket: the end of a link's text, of a picture's, or of a remark."""
        if not self._brackets:
            return end
        start, inside = self._brackets.pop()
        if self._text[inside : inside + 1] == "^":  # a footnote
            self._hide(start, end)
            return end
        target = _TARGET.match(self._text, end, self._end)
        if target is None:
            self.together.append((start, end))
            return end
        if self._text[start] == "!":
            self._hide(start, target.end())
        else:
            self.together.append((start, target.end()))
            self.hidden += [(start, inside), (end - 1, target.end())]
        return target.end()

    def _emphasis(self, start: int, end: int) -> None:
        """Marks of emphasis: they touch what they enclose, and stand outside words."""
        text, mark = self._text, self._text[start]
        before, after = text[start - 1 : start] or " ", text[end : end + 1] or " "
        closes = not before.isspace() and not _in_word(after)
        opens = not after.isspace() and not _in_word(before)
        waiting = self._marks[mark]
        if closes and waiting:
            first, inside = waiting.pop()
            self.together.append((first, end))
            self.hidden += [(first, inside), (start, end)]
        elif opens:
            waiting.append((start, end))
