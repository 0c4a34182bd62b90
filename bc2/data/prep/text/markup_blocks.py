"""Find the blocks of a text that are not prose: code, tables, headings, addresses.

A scanner for what Markdown (CommonMark 0.31 with GitHub's tables), reStructuredText and AsciiDoc
write in lines of their own. It reads each line once and keeps no tree: a block is a run of lines,
and all lines between blocks are text, such as paragraphs, list items and quotations. It follows
what authors mean where that differs from the specification: indented prose (of admonitions,
definitions, verse) is text, and a fence in a list may be indented by any amount.

`tests/data/prep/text/test_markup_blocks.py` compares it with markdown-it-py, which reads 1 MB/s of
what is scanned here at 20 MB/s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import cached_property
from itertools import accumulate, islice
from typing import NamedTuple


class BlockKind(Enum):
    """What a block holds; only `TEXT` is prose."""

    TEXT = "text"
    HEADING = "heading"
    CODE = "code"
    """Fenced, indented or literal code, prompts with their output, formulas."""
    TABLE = "table"
    ADDRESS = "address"
    """Link definitions; lines of pictures or URLs alone."""
    MATTER = "matter"
    """Front matter, the head of a mail, footers, signatures."""
    HTML = "html"
    RULE = "rule"


class Block(NamedTuple):
    """A run of whole lines, with the blank lines after it: text[start:end]."""

    start: int
    end: int
    kind: BlockKind


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

_QUOTE = re.compile(r"\A(?:[ \t]*>[ \t]?)+")
_MARKER = re.compile(r"\A[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+")
_FENCE = re.compile(r"\A(?:(`{3,})[^`]*$|(~{3,}))")
_DEFINITION = re.compile(
    r"\A(?:\[(?!\^)[^\]\n]{1,999}\]:(?:[ \t]|<|/|\#|(?:https?|ftp|mailto):)"
    r"|\.\. (?:_[^:\n]+:|\|[^|\n]+\| |\[[^\]\n]+\] https?:))"
)
_LEADS_TO = r"(?:\([^()\n]*+(?:\([^()\n]*+\)[^()\n]*+)*+\)|\[[^\]\n]*+\])"
_ADDRESS = re.compile(
    rf"\A(?:(?:[-*+] )?(?:\[?!\[[^\]\n]*+\]{_LEADS_TO}(?:\]{_LEADS_TO})?[ \t]*+)++\\?$"
    r"|<?https?://[^\s<>]++>?[.。]?$)"
)

#: Labels, each with an address or a link and nothing else: who wrote a text, where it comes from.
_CREDIT = re.compile(
    r"\A(?:[^\s:：\[\]]{1,16}+[:：][ \t]*+(?:<?https?://[^\s<>]++>?"
    r"|\[[^\]\n]*+\](?:\([^()\n]*+\)|\[[^\]\n]*+\]))[ \t]*+)++$"
)
_HEADING = re.compile(r"\A(?:\#{1,6}(?:[ \t]|$)|\#{2,6}(?=[^\s#])|={1,6} [^\s=\"])")
_RULE = re.compile(r"\A(?:([-=~^\"'`#*+._:])\1{2,}$|([-*_])(?:[ \t]*\2){2,}$)")
_BANNER = re.compile(r"\A([-=*#~])\1{2,} ?\w[^\n]{0,100}\1{3}$")
_LISTING = re.compile(r"\A(?:-{4,}|\.{4,})$")

#: What is above a listing of AsciiDoc: its attributes or its title.
_ATTRIBUTES = re.compile(r"\A(?:\[[^\[\]]*\]$|\.[^\s.])")
_ARMOUR = re.compile(r"\A-----BEGIN [A-Z0-9 ]{1,40}-----$")
_DIFF = re.compile(r"\A(?:@@ -\d|diff -)")
_BORDER = re.compile(r"\A=+(?:[ \t]+=+)+$")

#: Prompts of shells and interpreters; what follows a dollar sign is a command and no price.
_PROMPT = re.compile(
    r"\A(?:\$ (?=[A-Za-z./_~{])|>>> |In \[\d+\]:|Out\[\d+\]:|[\w.-]{1,64}@[\w.-]{1,64}:\S*[$#] )"
)
_FIELD = re.compile(r"\A[^\s:：][^:：\n]{0,30}[:：]")
_MATTER = re.compile(r"\A(?:[A-Za-z][\w -]{0,30}:(?:[ \t]|$)|[ \t]+\S|- )")
_FIRST_FIELD = re.compile(r"\A[A-Za-z][\w-]*:[ \t]+\S")
_KNOWN_FIELD = re.compile(r"\A(?:authors?|title|date|tags?|categor(?:y|ies)|layout|lang):", re.I)
_LINK = re.compile(r"\]\(|\]\[|https?://")

#: Directives of reStructuredText whose indented body is not prose.
_LITERAL = re.compile(
    r"\A\.\. (?:[\w:-]*code[\w-]*|parsed-literal|math|highlight|image|figure|toctree|doctest"
    r"|test\w+|literalinclude|include|raw|[\w-]*table|productionlist|graphviz|plot|autoclass|automodule"
    r"|autofunction|currentmodule|module|index|ipython)::"
)

_ADMONITION = re.compile(
    r"\A\.\. (?:note|warning|tip|important|caution|danger|attention|hint|error|seealso|admonition"
    r"|version\w+|deprecated|topic|rubric|epigraph)::"
)

#: Titles of remarks and tabs, as MkDocs writes them.
_TITLED = re.compile(r"\A(?:(?:!!!|\?\?\?\+?|===[!+]?) +(?:[\w-]+|\"|$)|:{3,} ?\w)")

#: Tags of templates, and remarks of MDX.
_TEMPLATE = re.compile(r"\A\{(?:%.*%|\{.*\}|/\*.*\*/)\}$")
_IMPORT = re.compile(
    r"\A(?:import\s(?:.+\sfrom\s)?['\"][^'\"]+['\"];?$|export (?:const|let|default|function) )"
)

#: Fields of the head of a mail, in a mail that is forwarded or quoted.
_MAIL = frozenset(("Fro", "To:", "Cc:", "Bcc", "Sen", "Dat", "Sub", "Rep"))
_MAIL_FIELD = re.compile(r"\A(?:From|To|Cc|Bcc|Sent|Date|Subject|Reply-To):[ \t]")

#: Cells of a line of columns: two gaps of white space or more, which no full stop explains.
_GAP = re.compile(r"[^\s.!?:;](?: {2}|\t)")

#: A text with none of them has no columns.
_GAPS = ("   ", "\t")

#: Elements of HTML that begin a block; those of the second pattern last until they are closed.
_HTML = re.compile(
    r"\A(?:</?(?:address|article|aside|blockquote|body|br|center|col|dd|details|div|dl|dt|fieldset|"
    r"figure|figcaption|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|li|link|main|meta|"
    r"nav|ol|option|p|param|picture|section|source|summary|t[dhr]|tbody|tfoot|thead|title|ul|video)"
    r"(?:[\s/>]|$)|<[!?]|</?[A-Za-z][\w.-]*(?:\s[^<>]*)?>\s*$)",
    re.IGNORECASE,
)
_RAW = re.compile(r"\A<(script|style|svg|pre|table|textarea|syntaxhighlight)(?=[\s>]|$)", re.I)

_TAG = re.compile(r"<[^<>]*>")

#: Words that sentences have and commands do not.
_FUNCTION_WORDS = re.compile(
    r"(?<![\w./-])(?:the|of|and|is|an?|that|was|are|this|which|be|it|you|we|he|she|they|his|her|I|my|but|"
    r"not|if|will|can|as|to|with|or)(?![\w/=-])"
)
_COMMENTS = ("# ", "//", "-- ", "/*", "<!--")
_CODE_MARKS = re.compile(r"[{}\[\]()<>=;|&$#@_\\/+*%~^`\":]")
_INLINE = re.compile(
    r"`[^`\n]{1,100}`|\$[^$\n]{1,100}\$|\[([^\[\]\n]{0,200})\]\([^()\n]{0,200}\)"
    r"|<https?://[^<>\s]{1,200}>"
    r"|\*\*|(?:(?<=[ ])|\A)(?:[-*+]|\d{1,3}[.)])[ ]"
)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")

#: What the line below a heading, or below the head of a table, begins with.
_UNDERLINES = frozenset("-=~^\"'`#*+._:|")

#: Blocks that are remembered: those of about 30 MB of text with much markup.
_REMEMBERED = 200_000

#: A line of HTML with more characters outside of tags is prose.
_LONGEST_LABEL = 60

#: A line with more characters is no heading over its underline.
_LONGEST_TITLE = 200

#: First lines of a text that tell its script.
_SAMPLE = 200

#: Longer lines of tildes or backticks alone may be underlines and rules as well as fences.
_LONGEST_FENCE = 5

#: Front matter and footers have at most so many lines.
_MATTER_LINES, _FOOTER_LINES = 200, 40


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
        return _RECENT.blocks(text)
    return [Block(0, len(text), BlockKind.TEXT)]


class _Recent:
    """The blocks of texts that this process has read: several stages read a part's texts in turn.

    Only digests and blocks are kept, about 200 bytes for each block.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Sequence[Block]] = {}
        self._count = 0

    def blocks(self, text: str) -> Sequence[Block]:
        """The blocks of a text, found at most once while they are remembered."""
        from xxhash import xxh3_128_digest

        key = xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
        found = self._known.get(key)
        if found is None:
            found = _Scanner(text).blocks()
            if self._count > _REMEMBERED:
                self._known.clear()
                self._count = 0
            self._known[key] = found
            self._count += len(found)
        return found


class _Scanner:
    """Reads lines; `_at` is the line that is read.

    Each reader of `_READERS` gets the line without quotation marks and indentation, and returns
    the line after its block; None if no such block begins here.
    """

    def __init__(self, text: str):
        self._lines = text.split("\n")
        self._bares = [*map(_bare, self._lines)]
        sizes = [len(line) + 1 for line in self._lines]
        self._starts = [0, *accumulate(sizes)]
        self._starts[-1] = len(text)
        self._at = 0
        self._open: dict[str, int] = {}
        """Closing line that was looked for -> no such line follows this one."""
        self._code_width: int | None = None
        """By how much the block before is indented, if it is one of indented code."""

    def blocks(self) -> list[Block]:
        found: list[tuple[int, BlockKind]] = []
        self._at = self._skip_blank(0)
        if self._at == len(self._lines):
            return [Block(0, self._starts[-1], BlockKind.TEXT)]
        if (end := self._matter(self._at)) > self._at:
            found.append((self._at, BlockKind.MATTER))
            self._at = end
        footer = self._footer()
        places = iter(sorted({*self._places(), footer, len(self._lines)}))
        place = next(places)
        while self._at < len(self._lines):
            first = self._at
            while place < first:
                place = next(places)
            kind, self._at = self._next(footer) if place == first else (BlockKind.TEXT, place)
            is_text = kind is BlockKind.TEXT
            is_listing = not is_text and self._is_listing(first, kind)
            self._code_width = self._width(first) if is_listing else None
            if not is_text or not found or found[-1][1] is not BlockKind.TEXT:
                found.append((first, kind))
        return self._cover(found)

    def _places(self) -> Iterator[int]:
        """The lines at which a block may begin; all other lines are text."""
        underlined = False
        for at in range(len(self._bares) - 1, -1, -1):
            bare = self._bares[at]
            if not bare:
                underlined = False
                continue
            mark = bare[0]
            if underlined or mark in _MARKS or self._lines[at][0] in " \t" or _may_begin(bare):
                yield at
            underlined = mark in _UNDERLINES

    def _is_listing(self, at: int, kind: BlockKind) -> bool:
        """Whether a block is code because it is indented, or output drawn as a table."""
        if kind is BlockKind.CODE:
            marked = self._bares[at].startswith(("```", "~~~", "$$", "\\"))
            return not marked and self._is_indented(self._lines[at])
        return kind is BlockKind.TABLE and self._is_indented(self._lines[at])

    def _cover(self, found: list[tuple[int, BlockKind]]) -> list[Block]:
        starts = [self._starts[line] for line, _ in found]
        starts[:1] = [0]
        ends = [*starts[1:], self._starts[-1]]
        return [
            Block(start, end, kind)
            for start, end, (_, kind) in zip(starts, ends, found, strict=True)
            if start < end
        ]

    def _next(self, footer: int) -> tuple[BlockKind, int]:
        """The kind of the block at this line, and the line after it and its blank lines."""
        at = self._at
        if at >= footer:
            return BlockKind.MATTER, len(self._lines)
        bare = self._bares[at]
        kind, end = BlockKind.TEXT, at + 1
        if bare:
            for kind_of_block, read in _READERS.get(bare[0], ()):
                last = read(self, bare)
                if last is not None:
                    kind, end = kind_of_block, last
                    break
            else:
                kind, end = self._plain(bare)
        while end < len(self._lines) and not self._lines[end].strip():
            end += 1
        return kind, end

    def _plain(self, bare: str) -> tuple[BlockKind, int]:
        """A block that its first character does not tell."""
        at = self._at
        following = self._line(at + 1)
        if following and following[0] in _UNDERLINES:
            if "|" in bare and _is_delimiter(following):
                return BlockKind.TABLE, self._rows(at + 2)
            if self._is_underline(bare, following):
                return BlockKind.HEADING, at + 2
        if self._lines[at][0] in " \t" and (end := self._code_end()) is not None:
            return BlockKind.CODE, end
        if (bare[0] in "IO" or "@" in bare) and _PROMPT.match(bare):
            return BlockKind.CODE, self._paragraph(at)
        if bare[:6] in ("import", "export") and self._after_blank() and _IMPORT.match(bare):
            return BlockKind.CODE, self._paragraph(at)
        if bare[:3] in _MAIL and (last := self._mail_head()) > at:
            return BlockKind.MATTER, last
        if ("  " in bare or "\t" in bare) and (last := self._columns()) > at:
            return BlockKind.TABLE, last
        if (bare[-1] in ")]" or "://" in bare) and _CREDIT.match(bare):
            return BlockKind.ADDRESS, at + 1
        return BlockKind.TEXT, at + 1

    def _code_end(self) -> int | None:
        """The line after the indented code that begins here; None if there is none."""
        at = self._at
        continues = self._code_width is not None and self._width(at) >= self._code_width
        if not (continues or self._after_blank()):
            return None
        if self._is_announced():
            return self._body(at, self._width(at) - 1)
        end = self._indented()
        if end == at:
            return None
        lines = self._lines[at:end]
        text = " ".join(lines)
        if self._is_chinese and (text.isascii() or not _CJK.search(text)):
            is_text = not continues and _is_sentence(text)
            return None if is_text else end  # or output of programs
        return None if is_prose(lines, continues) else end

    @cached_property
    def _is_chinese(self) -> bool:
        """Whether the text is written in ideographs, and not only quotes some."""
        sample = "".join(self._lines[:_SAMPLE])
        beyond_ascii = len(sample) - len(sample.encode("ascii", "ignore"))
        return beyond_ascii > 0.03 * len(sample) and _CJK.search(sample) is not None

    # -- lines ------------------------------------------------------------------------------

    def _line(self, at: int) -> str:
        return self._bares[at] if at < len(self._bares) else ""

    def _blank(self, at: int) -> bool:
        return at < 0 or not self._line(at)

    def _after_blank(self) -> bool:
        return self._blank(self._at - 1)

    def _paragraph(self, at: int) -> int:
        """The line after the last of the lines that are not blank."""
        while at < len(self._lines) and self._lines[at].strip():
            at += 1
        return at

    def _find(self, first: int, closes: Callable[[str], bool], name: str) -> int | None:
        """The first line from `first` on that closes a block; None if there is none."""
        if self._open.get(name, len(self._lines) + 1) <= first:
            return None
        for at in range(first, len(self._lines)):
            if closes(self._line(at)):
                return at
        self._open[name] = first
        return None

    @staticmethod
    def _is_indented(line: str) -> bool:
        return line.startswith("    ") or line[:4].lstrip(" ").startswith("\t")

    def _width(self, at: int) -> int:
        line = self._lines[at]
        return len(line) - len(line.lstrip())

    # -- readers ----------------------------------------------------------------------------

    def _fence(self, bare: str) -> int | None:
        opening = _FENCE.match(bare)
        if opening is None:
            return None
        mark = opening[1] or opening[2]
        end = self._find(
            self._at + 1,
            lambda line: line.startswith(mark) and not line.strip(mark[0]),
            mark,
        )
        if bare == mark and len(mark) > _LONGEST_FENCE and (end is None or not self._after_blank()):
            return None  # an underline
        return self._container_end() if end is None else end + 1

    def _container_end(self) -> int:
        """Where a block ends that is never closed: with its quotation or list item."""
        quoted, width = self._lines[self._at].lstrip().startswith(">"), self._width(self._at)
        for at in range(self._at + 1, len(self._lines)):
            line = self._lines[at]
            if quoted and not line.lstrip().startswith(">"):
                return at
            if line.strip() and self._width(at) < width:
                return at
        return len(self._lines)

    def _marked(self, bare: str) -> int | None:
        """A fence or a formula after the mark of a list item."""
        marker = _MARKER.match(bare)
        if marker is None:
            return None
        bare = bare[marker.end() :]
        return self._formula(bare) if bare.startswith("$$") else self._fence(bare)

    def _formula(self, bare: str) -> int | None:
        for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
            if bare.startswith(opening):
                if len(bare) > 4 and _closes(bare[2:], closing):
                    return self._at + 1
                end = self._find(self._at + 1, lambda line: _closes(line, closing), closing)  # noqa: B023
                return None if end is None else end + 1
        name = re.match(r"\\begin(\{[\w*]+\})", bare)
        if name is None:
            return None
        last = f"\\end{name[1]}"
        end = self._find(self._at, lambda line: last in line, last)
        return None if end is None else end + 1

    def _definition(self, bare: str) -> int | None:
        if not _DEFINITION.match(bare):
            return None
        if bare[0] == ".":  # with the options of a picture below it
            return max(self._at + 1, self._body(self._at + 1, self._width(self._at)))
        return self._at + 1

    def _address(self, bare: str) -> int | None:
        return self._at + 1 if _ADDRESS.match(bare) else None

    def _atx(self, bare: str) -> int | None:
        if not _HEADING.match(bare):
            return None
        if self._is_indented(self._lines[self._at]) and self._code_end() is not None:
            return None  # a comment, or the prompt of root
        return self._at + 1

    def _titled(self, bare: str) -> int | None:
        return self._at + 1 if _TITLED.match(bare) else None

    def _banner(self, bare: str) -> int | None:
        """A heading between marks in one line."""
        return self._at + 1 if bare[0] == bare[-1] and _BANNER.match(bare) else None

    def _template(self, bare: str) -> int | None:
        if bare.startswith("{/*"):
            end = self._find(self._at, lambda line: "*/}" in line, "*/}")
            return None if end is None else end + 1
        return self._at + 1 if _TEMPLATE.match(bare) else None

    def _mail_head(self) -> int:
        """The line after the head of a mail within a text; this line if there is none."""
        at = self._at
        while _MAIL_FIELD.match(self._line(at)):
            at += 1
        return at if at > self._at + 1 else self._at

    def _columns(self) -> int:
        """The line after the last of two or more rows of columns; this line if there are none."""
        at = self._at
        while len(_GAP.findall(self._line(at))) > 1:
            at += 1
        return at if at > self._at + 1 else self._at

    def _table(self, bare: str) -> int | None:
        if bare == "|===":  # of AsciiDoc
            last = self._find(self._at + 1, lambda line: line == "|===", bare)
            return None if last is None else last + 1
        end = self._rows(self._at)
        one = bare[0] == "|" and bare[-1] == "|" and bare.count("|") > 2
        return end if end > self._at + 1 or one else None

    def _rows(self, at: int) -> int:
        """The line after the last row of a table."""
        while at < len(self._lines) and (bare := self._line(at)):
            if "|" not in bare and bare[0] not in "+┌├└│╔╠╚║":
                break
            at += 1
        return at

    def _simple_table(self, bare: str) -> int | None:
        """A table of reStructuredText, between borders ``==== ====``."""
        if not _BORDER.match(bare):
            return None
        end = self._find(
            self._at + 1,
            lambda line: bool(_BORDER.match(line)),
            "====",
        )
        while end is not None and not self._blank(end + 1):
            end = self._find(end + 1, lambda line: bool(_BORDER.match(line)), "====")
        return None if end is None else end + 1

    def _rule(self, bare: str) -> int | None:
        return self._at + 1 if _RULE.match(bare) else None

    def _listing(self, bare: str) -> int | None:
        """A listing of AsciiDoc, between two equal lines."""
        if not _LISTING.match(bare) or self._blank(self._at + 1):
            return None
        if not self._after_blank() and not _ATTRIBUTES.match(self._line(self._at - 1)):
            return None
        end = self._find(self._at + 1, lambda line: line == bare, bare)
        return None if end is None else end + 1

    def _armour(self, bare: str) -> int | None:
        """A key, a certificate or a signature, of which a signed message is no part."""
        if not _ARMOUR.match(bare):
            return None
        last = bare.replace("BEGIN", "END")
        end = self._find(self._at + 1, lambda line: line == last, last)
        return self._paragraph(self._at) if end is None else end + 1

    def _diff(self, bare: str) -> int | None:
        """The difference of two files."""
        if _DIFF.match(bare) or (bare[:4] == "--- " and self._line(self._at + 1)[:4] == "+++ "):
            return self._paragraph(self._at)
        return None

    def _overlined(self, bare: str) -> int | None:
        """A heading of reStructuredText between two lines."""
        if not (_RULE.match(bare) and self._line(self._at + 2) == bare):
            return None
        title = self._line(self._at + 1)
        return self._at + 3 if 0 < len(title) <= len(bare) else None

    def _is_underline(self, bare: str, following: str) -> bool:
        match = _RULE.match(following) or re.match(r"([=-])\1$", following)
        if match is None or match[1] is None or len(bare) > _LONGEST_TITLE or bare[-1] == "。":
            return False
        if _ATTRIBUTES.match(bare) and _LISTING.match(following):
            return False
        if not self._after_blank() and self._at:
            return False
        mark = following[0]
        wide = sum(2 if _CJK.match(c) else 1 for c in bare)
        return mark in "=-" or (mark in "~^\"'`#*+._:" and len(following) >= min(wide, len(bare)))

    def _directive(self, bare: str) -> int | None:
        if not bare.startswith(".. "):
            return None
        at, width = self._at + 1, self._width(self._at)
        if _LITERAL.match(bare) or "::" not in bare:
            return max(at, self._body(at, width))
        if not _ADMONITION.match(bare):  # further arguments and options
            while at < len(self._lines) and self._lines[at].strip() and self._width(at) > width:
                at += 1
        return at

    def _body(self, at: int, width: int) -> int:
        """The line after the last that is indented by more than `width`, blank lines aside."""
        end = at
        while at < len(self._lines):
            if self._lines[at].strip():
                if self._width(at) <= width:
                    break
                end = at + 1
            at += 1
        return end

    def _indented(self) -> int:
        """The line after the last of the lines from this one on that are indented as code is."""
        at = self._at
        while at < len(self._lines) and self._lines[at].strip():
            if not self._is_indented(self._lines[at]):
                break
            at += 1
        return at

    def _is_announced(self) -> bool:
        """Whether the paragraph before announces a literal block: it ends in ``::``."""
        at = self._at - 1
        while at >= 0 and not self._lines[at].strip():
            at -= 1
        if at < 0 or not self._lines[at].rstrip().endswith("::"):
            return False
        return self._width(at) < self._width(self._at)

    def _prompt(self, bare: str) -> int | None:
        if not _PROMPT.match(bare) or (bare.startswith(">>>") and is_prose([bare[4:]])):
            return None
        return self._paragraph(self._at)

    def _raw(self, bare: str, names: Sequence[str]) -> int | None:
        """An element that lasts until it is closed, if it has one of some names."""
        raw = _RAW.match(bare)
        if raw is None or raw[1].lower() not in names:
            return None
        last = f"</{raw[1].lower()}>"
        end = self._find(self._at, lambda line: last in line.lower(), last)
        return None if end is None else end + 1

    def _html_code(self, bare: str) -> int | None:
        return self._raw(bare, ("pre", "textarea", "syntaxhighlight"))

    def _html_table(self, bare: str) -> int | None:
        return self._raw(bare, ("table",))

    def _html(self, bare: str) -> int | None:
        if (end := self._raw(bare, ("script", "style", "svg"))) is not None:
            return end
        if bare.startswith("<!--"):
            end = self._find(self._at, lambda line: "-->" in line, "-->")
            return None if end is None else end + 1
        if not _HTML.match(bare) or len(_TAG.sub("", bare)) > _LONGEST_LABEL:
            return None
        return self._at + 1

    # -- ends of a document -----------------------------------------------------------------

    def _matter(self, at: int) -> int:
        """The line after front matter, or the head of a mail, that begins here; `at` if none."""
        first = self._lines[at].strip()
        if first in ("---", "+++"):
            return self._fenced_matter(at, first)
        end = self._paragraph(at)
        lines = self._lines[at:end]
        if len(lines) > 1 and lines[-1].strip() == "---":
            lines.pop()
        if not _FIRST_FIELD.match(first) or not all(map(_MATTER.match, lines)):
            return at
        return self._skip_blank(end) if len(lines) > 1 or _KNOWN_FIELD.match(first) else at

    def _fenced_matter(self, at: int, mark: str) -> int:
        for end in range(at + 1, min(len(self._lines), at + _MATTER_LINES)):
            line = self._lines[end]
            if line.strip() in (mark, "..."):
                return self._skip_blank(end + 1)
            if line.strip() and not (_MATTER.match(line) or "=" in line or line[0] in "[#}])"):
                return at
        return at

    def _skip_blank(self, at: int) -> int:
        while at < len(self._lines) and not self._lines[at].strip():
            at += 1
        return at

    def _footer(self) -> int:
        """The line from which on a document has its footer or signature; else the line count."""
        lines = self._lines
        last = stop = len(lines)
        while stop > self._at and (self._blank(stop - 1) or _DEFINITION.match(lines[stop - 1])):
            stop -= 1
        for at in range(stop - 1, max(self._at, stop - _FOOTER_LINES), -1):
            bare = lines[at].strip()
            if bare == "--" and at > self._at and (self._blank(at - 1) or lines[at] == "-- "):
                return at
            if _RULE.match(bare) and bare[0] in "-*_" and not self._may_be_title(at - 1):
                inside = [line.strip() for line in lines[at + 1 : stop] if line.strip()]
                fits = all(map(_fits_footer, inside))
                return at if fits and any(map(_FIELD.match, inside)) else last
        return last

    def _may_be_title(self, at: int) -> bool:
        """Whether a line may be a title over its underline, and not the end of what it follows."""
        bare = self._line(at)
        return bool(bare) and not bare.startswith(("```", "~~~", "|")) and bare[-1] not in "。！？"


def _may_begin(bare: str) -> bool:
    """Whether a block may begin with a line that neither its first character nor the next tells."""
    if "  " in bare or "\t" in bare or "@" in bare:
        return True
    if "://" in bare or "](" in bare or "][" in bare:
        return True
    return bare[:6] in ("import", "export") or bare[:3] in _MAIL or bare[:4] in ("In [", "Out[")


def _bare(line: str) -> str:
    """A line without indentation and marks of quotation."""
    bare = line.strip()
    if bare[:1] == ">" and bare[:3] != ">>>" and (match := _QUOTE.match(bare)):
        return bare[match.end() :].strip()
    return bare


def _fits_footer(line: str) -> bool:
    """Whether a line may be in a footer: a field, a definition, or a link with a few words."""
    if _DEFINITION.match(line) or _ADDRESS.match(line):
        return True
    return len(line) <= 300 and bool(_FIELD.match(line) or _LINK.search(line))


def _closes(line: str, mark: str) -> bool:
    """Whether a line closes a formula; the punctuation of its sentence may follow."""
    return line.startswith(mark) or line.rstrip(".,;，。；．").endswith(mark)


def _is_delimiter(bare: str) -> bool:
    """Whether a line separates the head of a table from its rows."""
    return ("|" in bare or "+" in bare) and not bare.strip(" \t|:-+=") and "-" in bare


def is_prose(lines: Sequence[str], after_code: bool = False) -> bool:
    """Whether indented lines are prose and not code.

    Code has marks that prose lacks, or it begins as a command does: with a small letter, and it
    has no function words.

    Args:
        after_code: the lines follow code, with a blank line between; a comment goes on with it.
    """
    if after_code and lines[0].lstrip().startswith(_COMMENTS):
        return False
    words = " ".join(lines).split()
    text = " ".join(words)
    solid = len(text) - len(words) + 1
    marks = len(_CODE_MARKS.findall(text))
    has_ideographs = not text.isascii() and _CJK.search(text) is not None
    if has_ideographs and marks > 0.1 * solid:  # with code, formulas and links between them
        text = _INLINE.sub(r"\1", text)
        solid = len("".join(text.split())) + 1
        marks = len(_CODE_MARKS.findall(text))
    ends = text[-1:] in "。！？．；"  # as a sentence, which may be about paths and options
    if marks > (0.3 if ends else 0.1) * solid:
        return False
    if has_ideographs and len(_CJK.findall(text)) > (0.1 if ends else 0.2) * solid:
        return True
    if len(_FUNCTION_WORDS.findall(text)) * 12 >= len(words):
        return True
    return marks == 0 and not (text[:1].islower() or text[:1] in "-$./")


def _is_sentence(text: str) -> bool:
    """Whether a line of English begins and ends as a sentence does, and has its words."""
    text = text.strip()
    ends = text[:1].isupper() and text[-1:] in ".!?"
    return ends and len(_FUNCTION_WORDS.findall(text)) * 12 >= len(text.split())


def has_function_words(text: str, count: int) -> bool:
    """Whether a text has so many words that sentences have and commands do not."""
    return next(islice(_FUNCTION_WORDS.finditer(text), count - 1, None), None) is not None


_Reader = Callable[[_Scanner, str], int | None]

#: First character of a line -> the readers to try, in order.
_READERS: dict[str, tuple[tuple[BlockKind, _Reader], ...]] = {}


def _register(marks: str, kind: BlockKind, reader: _Reader) -> None:
    for mark in marks:
        _READERS[mark] = (*_READERS.get(mark, ()), (kind, reader))


_register("`~", BlockKind.CODE, _Scanner._fence)
_register("-*+0123456789", BlockKind.CODE, _Scanner._marked)
_register("$\\", BlockKind.CODE, _Scanner._formula)
_register("[.", BlockKind.ADDRESS, _Scanner._definition)
_register("[!h<-*+", BlockKind.ADDRESS, _Scanner._address)
_register("#", BlockKind.HEADING, _Scanner._atx)
_register("!?=:", BlockKind.HEADING, _Scanner._titled)
_register("{", BlockKind.HTML, _Scanner._template)
_register("|+┌├│╔║", BlockKind.TABLE, _Scanner._table)
_register("=", BlockKind.TABLE, _Scanner._simple_table)
_register("=", BlockKind.HEADING, _Scanner._atx)
_register("=-~^\"'`#*+._:", BlockKind.HEADING, _Scanner._overlined)
_register("-.", BlockKind.CODE, _Scanner._listing)
_register("-", BlockKind.CODE, _Scanner._armour)
_register("-@d", BlockKind.CODE, _Scanner._diff)
_register("-=*#~", BlockKind.HEADING, _Scanner._banner)
_register("=-~^\"'`#*+._:", BlockKind.RULE, _Scanner._rule)
_register(".", BlockKind.CODE, _Scanner._directive)
_register("$>", BlockKind.CODE, _Scanner._prompt)
_register("<", BlockKind.CODE, _Scanner._html_code)
_register("<", BlockKind.TABLE, _Scanner._html_table)
_register("<", BlockKind.HTML, _Scanner._html)

#: The first characters of lines for which there are readers.
_MARKS = frozenset(_READERS)

_RECENT = _Recent()
