"""Headings, titles of remarks, and rules."""

from __future__ import annotations

import re

from bc2.data.prep.text.markup.code_blocks import ATTRIBUTES, LISTING, code_end
from bc2.data.prep.text.markup.lines import Lines
from bc2.data.prep.text.markup.prose_or_code import CJK

_HEADING = re.compile(r"\A(?:\#{1,6}(?:[ \t]|$)|\#{2,6}(?=[^\s#])|={1,6} [^\s=\"])")
RULE = re.compile(r"\A(?:([-=~^\"'`#*+._:])\1{2,}$|([-*_])(?:[ \t]*\2){2,}$)")
_BANNER = re.compile(r"\A([-=*#~])\1{2,} ?\w[^\n]{0,100}\1{3}$")

#: Titles of remarks and tabs, as MkDocs writes them.
_TITLED = re.compile(r"\A(?:(?:!!!|\?\?\?\+?|===[!+]?) +(?:[\w-]+|\"|$)|:{3,} ?\w)")

#: A line with more characters is no heading over its underline.
_LONGEST_TITLE = 200


def atx(lines: Lines, bare: str) -> int | None:
    if not _HEADING.match(bare):
        return None
    if lines.is_indented(lines.raw[lines.at]) and code_end(lines) is not None:
        return None  # a comment, or the prompt of root
    return lines.at + 1


def titled(lines: Lines, bare: str) -> int | None:
    return lines.at + 1 if _TITLED.match(bare) else None


def banner(lines: Lines, bare: str) -> int | None:
    """A heading between marks in one line."""
    return lines.at + 1 if bare[0] == bare[-1] and _BANNER.match(bare) else None


def overlined(lines: Lines, bare: str) -> int | None:
    """A heading of reStructuredText between two lines."""
    if not (RULE.match(bare) and lines.bare(lines.at + 2) == bare):
        return None
    title = lines.bare(lines.at + 1)
    return lines.at + 3 if 0 < len(title) <= len(bare) else None


def is_underline(lines: Lines, bare: str, following: str) -> bool:
    match = RULE.match(following) or re.match(r"([=-])\1$", following)
    if match is None or match[1] is None or len(bare) > _LONGEST_TITLE or bare[-1] == "。":
        return False
    if ATTRIBUTES.match(bare) and LISTING.match(following):
        return False
    if not lines.after_blank() and lines.at:
        return False
    mark = following[0]
    wide = sum(2 if CJK.match(c) else 1 for c in bare)
    return mark in "=-" or (mark in "~^\"'`#*+._:" and len(following) >= min(wide, len(bare)))


def rule(lines: Lines, bare: str) -> int | None:
    return lines.at + 1 if RULE.match(bare) else None
