"""Tables of Markdown, reStructuredText and AsciiDoc, and columns of plain text."""

from __future__ import annotations

import re

from bc2.data.prep.text.markup.lines import Lines

_BORDER = re.compile(r"\A=+(?:[ \t]+=+)+$")

#: Cells of a line of columns: two gaps of white space or more, which no full stop explains.
_GAP = re.compile(r"[^\s.!?:;](?: {2}|\t)")


def table(lines: Lines, bare: str) -> int | None:
    if bare == "|===":  # of AsciiDoc
        last = lines.find(lines.at + 1, lambda line: line == "|===", bare)
        return None if last is None else last + 1
    end = rows(lines, lines.at)
    one = bare[0] == "|" and bare[-1] == "|" and bare.count("|") > 2
    return end if end > lines.at + 1 or one else None


def rows(lines: Lines, at: int) -> int:
    """The line after the last row of a table."""
    while at < len(lines.raw) and (bare := lines.bare(at)):
        if "|" not in bare and bare[0] not in "+┌├└│╔╠╚║":
            break
        at += 1
    return at


def simple_table(lines: Lines, bare: str) -> int | None:
    """A table of reStructuredText, between borders ``==== ====``."""
    if not _BORDER.match(bare):
        return None
    end = lines.find(
        lines.at + 1,
        lambda line: bool(_BORDER.match(line)),
        "====",
    )
    while end is not None and not lines.is_blank(end + 1):
        end = lines.find(end + 1, lambda line: bool(_BORDER.match(line)), "====")
    return None if end is None else end + 1


def columns(lines: Lines) -> int:
    """The line after the last of two or more rows of columns; this line if there are none."""
    at = lines.at
    while len(_GAP.findall(lines.bare(at))) > 1:
        at += 1
    return at if at > lines.at + 1 else lines.at


def is_delimiter(bare: str) -> bool:
    """Whether a line separates the head of a table from its rows."""
    return ("|" in bare or "+" in bare) and not bare.strip(" \t|:-+=") and "-" in bare
