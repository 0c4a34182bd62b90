"""Front matter, heads of mails, footers and signatures."""

from __future__ import annotations

import re

from bc2.data.prep.text.markup.address_blocks import ADDRESS, DEFINITION
from bc2.data.prep.text.markup.heading_blocks import RULE
from bc2.data.prep.text.markup.lines import Lines

_FIELD = re.compile(r"\A[^\s:：][^:：\n]{0,30}[:：]")
_MATTER = re.compile(r"\A(?:[A-Za-z][\w -]{0,30}:(?:[ \t]|$)|[ \t]+\S|- )")
_FIRST_FIELD = re.compile(r"\A[A-Za-z][\w-]*:[ \t]+\S")
_KNOWN_FIELD = re.compile(r"\A(?:authors?|title|date|tags?|categor(?:y|ies)|layout|lang):", re.I)
_LINK = re.compile(r"\]\(|\]\[|https?://")
_MAIL_FIELD = re.compile(r"\A(?:From|To|Cc|Bcc|Sent|Date|Subject|Reply-To):[ \t]")

#: Front matter and footers have at most so many lines.
_MATTER_LINES, _FOOTER_LINES = 200, 40


def front_matter(lines: Lines, at: int) -> int:
    """The line after front matter, or the head of a mail, that begins here; `at` if none."""
    first = lines.raw[at].strip()
    if first in ("---", "+++"):
        return fenced_matter(lines, at, first)
    end = lines.paragraph(at)
    fields = lines.raw[at:end]
    if len(fields) > 1 and fields[-1].strip() == "---":
        fields.pop()
    if not _FIRST_FIELD.match(first) or not all(map(_MATTER.match, fields)):
        return at
    return lines.skip_blank(end) if len(fields) > 1 or _KNOWN_FIELD.match(first) else at


def fenced_matter(lines: Lines, at: int, mark: str) -> int:
    for end in range(at + 1, min(len(lines.raw), at + _MATTER_LINES)):
        line = lines.raw[end]
        if line.strip() in (mark, "..."):
            return lines.skip_blank(end + 1)
        if line.strip() and not (_MATTER.match(line) or "=" in line or line[0] in "[#}])"):
            return at
    return at


def footer(lines: Lines) -> int:
    """The line from which on a document has its footer or signature; else the line count."""
    raw = lines.raw
    last = stop = len(raw)
    while stop > lines.at and (lines.is_blank(stop - 1) or DEFINITION.match(raw[stop - 1])):
        stop -= 1
    for at in range(stop - 1, max(lines.at, stop - _FOOTER_LINES), -1):
        bare = raw[at].strip()
        if bare == "--" and at > lines.at and (lines.is_blank(at - 1) or raw[at] == "-- "):
            return at
        if RULE.match(bare) and bare[0] in "-*_" and not may_be_title(lines, at - 1):
            inside = [line.strip() for line in raw[at + 1 : stop] if line.strip()]
            fits = all(map(_fits_footer, inside))
            return at if fits and any(map(_FIELD.match, inside)) else last
    return last


def may_be_title(lines: Lines, at: int) -> bool:
    """Whether a line may be a title over its underline, and not the end of what it follows."""
    bare = lines.bare(at)
    return bool(bare) and not bare.startswith(("```", "~~~", "|")) and bare[-1] not in "。！？"


def mail_head(lines: Lines) -> int:
    """The line after the head of a mail within a text; this line if there is none."""
    at = lines.at
    while _MAIL_FIELD.match(lines.bare(at)):
        at += 1
    return at if at > lines.at + 1 else lines.at


def _fits_footer(line: str) -> bool:
    """Whether a line may be in a footer: a field, a definition, or a link with a few words."""
    if DEFINITION.match(line) or ADDRESS.match(line):
        return True
    return len(line) <= 300 and bool(_FIELD.match(line) or _LINK.search(line))
