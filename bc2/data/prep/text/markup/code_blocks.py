"""Blocks of code: fenced, indented, announced, at a prompt; formulas, keys, differences."""

from __future__ import annotations

import re

from bc2.data.prep.text.markup.lines import Lines
from bc2.data.prep.text.markup.prose_or_code import CJK, is_prose, is_sentence

_MARKER = re.compile(r"\A[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+")
_FENCE = re.compile(r"\A(?:(`{3,})[^`]*$|(~{3,}))")
LISTING = re.compile(r"\A(?:-{4,}|\.{4,})$")

#: What is above a listing of AsciiDoc: its attributes or its title.
ATTRIBUTES = re.compile(r"\A(?:\[[^\[\]]*\]$|\.[^\s.])")
_ARMOUR = re.compile(r"\A-----BEGIN [A-Z0-9 ]{1,40}-----$")
_DIFF = re.compile(r"\A(?:@@ -\d|diff -)")

#: Prompts of shells and interpreters; what follows a dollar sign is a command and no price.
PROMPT = re.compile(
    r"\A(?:\$ (?=[A-Za-z./_~{])|>>> |In \[\d+\]:|Out\[\d+\]:|[\w.-]{1,64}@[\w.-]{1,64}:\S*[$#] )"
)

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

#: Longer lines of tildes or backticks alone may be underlines and rules as well as fences.
_LONGEST_FENCE = 5


def fence(lines: Lines, bare: str) -> int | None:
    opening = _FENCE.match(bare)
    if opening is None:
        return None
    mark = opening[1] or opening[2]
    end = lines.find(
        lines.at + 1,
        lambda line: line.startswith(mark) and not line.strip(mark[0]),
        mark,
    )
    if bare == mark and len(mark) > _LONGEST_FENCE and (end is None or not lines.after_blank()):
        return None  # an underline
    return container_end(lines) if end is None else end + 1


def container_end(lines: Lines) -> int:
    """Where a block ends that is never closed: with its quotation or list item."""
    quoted, width = lines.raw[lines.at].lstrip().startswith(">"), lines.width(lines.at)
    for at in range(lines.at + 1, len(lines.raw)):
        line = lines.raw[at]
        if quoted and not line.lstrip().startswith(">"):
            return at
        if line.strip() and lines.width(at) < width:
            return at
    return len(lines.raw)


def marked(lines: Lines, bare: str) -> int | None:
    """A fence or a formula after the mark of a list item."""
    marker = _MARKER.match(bare)
    if marker is None:
        return None
    bare = bare[marker.end() :]
    return formula(lines, bare) if bare.startswith("$$") else fence(lines, bare)


def formula(lines: Lines, bare: str) -> int | None:
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if bare.startswith(opening):
            if len(bare) > 4 and _closes(bare[2:], closing):
                return lines.at + 1
            end = lines.find(lines.at + 1, lambda line: _closes(line, closing), closing)  # noqa: B023
            return None if end is None else end + 1
    name = re.match(r"\\begin(\{[\w*]+\})", bare)
    if name is None:
        return None
    last = f"\\end{name[1]}"
    end = lines.find(lines.at, lambda line: last in line, last)
    return None if end is None else end + 1


def listing(lines: Lines, bare: str) -> int | None:
    """A listing of AsciiDoc, between two equal lines."""
    if not LISTING.match(bare) or lines.is_blank(lines.at + 1):
        return None
    if not lines.after_blank() and not ATTRIBUTES.match(lines.bare(lines.at - 1)):
        return None
    end = lines.find(lines.at + 1, lambda line: line == bare, bare)
    return None if end is None else end + 1


def armour(lines: Lines, bare: str) -> int | None:
    """A key, a certificate or a signature, of which a signed message is no part."""
    if not _ARMOUR.match(bare):
        return None
    last = bare.replace("BEGIN", "END")
    end = lines.find(lines.at + 1, lambda line: line == last, last)
    return lines.paragraph(lines.at) if end is None else end + 1


def diff(lines: Lines, bare: str) -> int | None:
    """The difference of two files."""
    if _DIFF.match(bare) or (bare[:4] == "--- " and lines.bare(lines.at + 1)[:4] == "+++ "):
        return lines.paragraph(lines.at)
    return None


def directive(lines: Lines, bare: str) -> int | None:
    if not bare.startswith(".. "):
        return None
    at, width = lines.at + 1, lines.width(lines.at)
    if _LITERAL.match(bare) or "::" not in bare:
        return max(at, lines.body(at, width))
    if not _ADMONITION.match(bare):  # further arguments and options
        while at < len(lines.raw) and lines.raw[at].strip() and lines.width(at) > width:
            at += 1
    return at


def prompt(lines: Lines, bare: str) -> int | None:
    if not PROMPT.match(bare) or (bare.startswith(">>>") and is_prose([bare[4:]])):
        return None
    return lines.paragraph(lines.at)


def code_end(lines: Lines) -> int | None:
    """The line after the indented code that begins here; None if there is none."""
    at = lines.at
    continues = lines.code_width is not None and lines.width(at) >= lines.code_width
    if not (continues or lines.after_blank()):
        return None
    if lines.is_announced():
        return lines.body(at, lines.width(at) - 1)
    end = lines.indented()
    if end == at:
        return None
    indented = lines.raw[at:end]
    text = " ".join(indented)
    if lines.is_chinese and (text.isascii() or not CJK.search(text)):
        is_text = not continues and is_sentence(text)
        return None if is_text else end  # or output of programs
    return None if is_prose(indented, continues) else end


def _closes(line: str, mark: str) -> bool:
    """Whether a line closes a formula; the punctuation of its sentence may follow."""
    return line.startswith(mark) or line.rstrip(".,;，。；．").endswith(mark)
