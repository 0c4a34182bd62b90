"""Find the blocks of a text that are not prose: code, tables, headings, addresses.

A scanner for what Markdown (CommonMark 0.31 with GitHub's tables), reStructuredText and AsciiDoc
write in lines of their own. It reads each line once and keeps no tree: a block is a run of lines,
and all lines between blocks are text, such as paragraphs, list items and quotations. It follows
what authors mean where that differs from the specification: indented prose (of admonitions,
definitions, verse) is text, and a fence in a list may be indented by any amount.

A reader gets the lines of a text and the one at which a block may begin, without indentation and
marks of quotation. It returns the line after the block, or None if no such block begins there.

`tests/data/prep/text/markup/test_blocks.py` compares it with markdown-it-py, which reads 1 MB/s of
what is scanned here at 20 MB/s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from bc2.data.prep.text.markup.address_blocks import address, definition
from bc2.data.prep.text.markup.block import Block, BlockKind
from bc2.data.prep.text.markup.code_blocks import (
    PROMPT,
    armour,
    code_end,
    diff,
    directive,
    fence,
    formula,
    listing,
    marked,
    prompt,
)
from bc2.data.prep.text.markup.document_edges import footer, front_matter, mail_head
from bc2.data.prep.text.markup.heading_blocks import (
    atx,
    banner,
    is_underline,
    overlined,
    rule,
    titled,
)
from bc2.data.prep.text.markup.html_blocks import (
    html_code,
    html_element,
    html_table,
    template,
    template_code,
)
from bc2.data.prep.text.markup.lines import Lines
from bc2.data.prep.text.markup.table_blocks import columns, is_delimiter, rows, simple_table, table
from bc2.data.prep.text.recent import Recent

#: How the first line of a block begins. A text in which no line does so, and no line ends in a
#: double colon, is prose.
_FIRST = (
    r"(?:[ ]{4}|[ ]{0,3}\t)[ \t]*+\S|[ \t]*+>>>"
    r"|[ \t>]*+(?:[`~$\\|<\[+{┌├│╔║]|![\[!]|\?\?\?|={1,6} |\#{1,6}[ \t]|\#\#|\.\. |https?://"
    r"|@@ -|diff -|import |export |From: |Subject: "
    r"|(?:In|Out) ?\[|([-=^\"'#*._:])\1\1|(?:[-*]|\d{1,9}[.)])[ \t]+(?:```|~~~|!\[)"
    r"|==?\n|---?\n|:?-+:?[ \t]*\|)"
)
_SIGN = re.compile(rf"\n(?:{_FIRST})")
_BEGINS = re.compile(rf"\A(?:{_FIRST}|[A-Za-z][\w-]*:[ \t])")
_ANNOUNCES = re.compile(r"::[ \t]*\n")

#: Labels, each with an address or a link and nothing else: who wrote a text, where it comes from.
_CREDIT = re.compile(
    r"\A(?:[^\s:：\[\]]{1,16}+[:：][ \t]*+(?:<?https?://[^\s<>]++>?"
    r"|\[[^\]\n]*+\](?:\([^()\n]*+\)|\[[^\]\n]*+\]))[ \t]*+)++$"
)
_IMPORT = re.compile(
    r"\A(?:import\s(?:.+\sfrom\s)?['\"][^'\"]+['\"];?$|export (?:const|let|default|function) )"
)

#: Fields of the head of a mail, in a mail that is forwarded or quoted.
_MAIL = frozenset(("Fro", "To:", "Cc:", "Bcc", "Sen", "Dat", "Sub", "Rep"))

#: A text with none of them has no columns.
_GAPS = ("   ", "\t")

#: What the line below a heading, or below the head of a table, begins with.
_UNDERLINES = frozenset("-=~^\"'`#*+._:|")

#: Blocks that are remembered: those of about 30 MB of text with much markup.
_REMEMBERED = 200_000


def blocks(text: str) -> Sequence[Block]:
    """The blocks of a text: they follow one another and cover it; blank lines end each."""
    if not text:
        return []
    if (
        _BEGINS.match(text)
        or _SIGN.search(text)
        or _ANNOUNCES.search(text)
        or any(gap in text for gap in _GAPS)
    ):
        return _scanned(text)
    return [Block(0, len(text), BlockKind.TEXT)]


class _Scanner:
    """Finds one block after the other; the lines between blocks are text."""

    def __init__(self, text: str):
        self._lines = Lines(text)

    def blocks(self) -> list[Block]:
        lines = self._lines
        found: list[tuple[int, BlockKind]] = []
        lines.at = lines.skip_blank(0)
        if lines.at == len(lines.raw):
            return [Block(0, lines.starts[-1], BlockKind.TEXT)]
        if (end := front_matter(lines, lines.at)) > lines.at:
            found.append((lines.at, BlockKind.MATTER))
            lines.at = end
        last = footer(lines)
        places = iter(sorted({*self._places(), last, len(lines.raw)}))
        place = next(places)
        while lines.at < len(lines.raw):
            first = lines.at
            while place < first:
                place = next(places)
            kind, lines.at = self._next(last) if place == first else (BlockKind.TEXT, place)
            is_text = kind is BlockKind.TEXT
            is_listing = not is_text and self._is_listing(first, kind)
            lines.code_width = lines.width(first) if is_listing else None
            if not is_text or not found or found[-1][1] is not BlockKind.TEXT:
                found.append((first, kind))
        return self._cover(found)

    def _places(self) -> Iterator[int]:
        """The lines at which a block may begin; all other lines are text."""
        underlined = False
        for at in range(len(self._lines.bares) - 1, -1, -1):
            bare = self._lines.bares[at]
            if not bare:
                underlined = False
                continue
            mark = bare[0]
            if underlined or mark in _MARKS or self._lines.raw[at][0] in " \t" or _may_begin(bare):
                yield at
            underlined = mark in _UNDERLINES

    def _is_listing(self, at: int, kind: BlockKind) -> bool:
        """Whether a block is code because it is indented, or output drawn as a table."""
        if kind is BlockKind.CODE:
            marked = self._lines.bares[at].startswith(("```", "~~~", "$$", "\\"))
            return not marked and self._lines.is_indented(self._lines.raw[at])
        return kind is BlockKind.TABLE and self._lines.is_indented(self._lines.raw[at])

    def _cover(self, found: list[tuple[int, BlockKind]]) -> list[Block]:
        starts = [self._lines.starts[line] for line, _ in found]
        starts[:1] = [0]
        ends = [*starts[1:], self._lines.starts[-1]]
        return [
            Block(start, end, kind)
            for start, end, (_, kind) in zip(starts, ends, found, strict=True)
            if start < end
        ]

    def _next(self, last: int) -> tuple[BlockKind, int]:
        """The kind of the block at this line, and the line after it and its blank lines.

        Args:
            last: the line at which the footer begins.
        """
        at = self._lines.at
        if at >= last:
            return BlockKind.MATTER, len(self._lines.raw)
        bare = self._lines.bares[at]
        kind, end = BlockKind.TEXT, at + 1
        if bare:
            for kind_of_block, read in _READERS.get(bare[0], ()):
                stop = read(self._lines, bare)
                if stop is not None:
                    kind, end = kind_of_block, stop
                    break
            else:
                kind, end = self._plain(bare)
        while end < len(self._lines.raw) and not self._lines.raw[end].strip():
            end += 1
        return kind, end

    def _plain(self, bare: str) -> tuple[BlockKind, int]:
        """A block that its first character does not tell."""
        at = self._lines.at
        following = self._lines.bare(at + 1)
        if following and following[0] in _UNDERLINES:
            if "|" in bare and is_delimiter(following):
                return BlockKind.TABLE, rows(self._lines, at + 2)
            if is_underline(self._lines, bare, following):
                return BlockKind.HEADING, at + 2
        if self._lines.raw[at][0] in " \t" and (end := code_end(self._lines)) is not None:
            return BlockKind.CODE, end
        if (bare[0] in "IO" or "@" in bare) and PROMPT.match(bare):
            return BlockKind.CODE, self._lines.paragraph(at)
        if bare[:6] in ("import", "export") and self._lines.after_blank() and _IMPORT.match(bare):
            return BlockKind.CODE, self._lines.paragraph(at)
        if bare[:3] in _MAIL and (last := mail_head(self._lines)) > at:
            return BlockKind.MATTER, last
        if ("  " in bare or "\t" in bare) and (last := columns(self._lines)) > at:
            return BlockKind.TABLE, last
        if (bare[-1] in ")]" or "://" in bare) and _CREDIT.match(bare):
            return BlockKind.ADDRESS, at + 1
        return BlockKind.TEXT, at + 1


def _may_begin(bare: str) -> bool:
    """Whether a block may begin with a line that neither its first character nor the next tells."""
    if "  " in bare or "\t" in bare or "@" in bare:
        return True
    if "://" in bare or "](" in bare or "][" in bare:
        return True
    return bare[:6] in ("import", "export") or bare[:3] in _MAIL or bare[:4] in ("In [", "Out[")


_Reader = Callable[[Lines, str], int | None]

#: First character of a line -> the readers to try, in order.
_READERS: dict[str, tuple[tuple[BlockKind, _Reader], ...]] = {}


def _register(marks: str, kind: BlockKind, reader: _Reader) -> None:
    for mark in marks:
        _READERS[mark] = (*_READERS.get(mark, ()), (kind, reader))


_register("`~", BlockKind.CODE, fence)
_register("-*+0123456789", BlockKind.CODE, marked)
_register("$\\", BlockKind.CODE, formula)
_register("[.", BlockKind.ADDRESS, definition)
_register("[!h<-*+", BlockKind.ADDRESS, address)
_register("#", BlockKind.HEADING, atx)
_register("!?=:", BlockKind.HEADING, titled)
_register("{", BlockKind.CODE, template_code)
_register("{", BlockKind.HTML, template)
_register("|+┌├│╔║", BlockKind.TABLE, table)
_register("=", BlockKind.TABLE, simple_table)
_register("=", BlockKind.HEADING, atx)
_register("=-~^\"'`#*+._:", BlockKind.HEADING, overlined)
_register("-.", BlockKind.CODE, listing)
_register("-", BlockKind.CODE, armour)
_register("-@d", BlockKind.CODE, diff)
_register("-=*#~", BlockKind.HEADING, banner)
_register("=-~^\"'`#*+._:", BlockKind.RULE, rule)
_register(".", BlockKind.CODE, directive)
_register("$>", BlockKind.CODE, prompt)
_register("<", BlockKind.CODE, html_code)
_register("<", BlockKind.TABLE, html_table)
_register("<", BlockKind.HTML, html_element)

#: The first characters of lines for which there are readers.
_MARKS = frozenset(_READERS)


def _scan(text: str) -> Sequence[Block]:
    return _Scanner(text).blocks()


_scanned = Recent(_scan, lambda text, found: len(found), _REMEMBERED)
