"""A text as lines, with what every reader of blocks asks about them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from itertools import accumulate

from bc2.data.prep.text.markup.prose_or_code import CJK

_QUOTE = re.compile(r"\A(?:[ \t]*>[ \t]?)+")

#: First lines of a text that tell its script.
_SAMPLE = 200


class Lines:
    """The lines of a text; `at` is the one that is read."""

    def __init__(self, text: str):
        self.raw = text.split("\n")
        self.bares = [*map(bare_line, self.raw)]
        """The lines without indentation and marks of quotation."""
        sizes = [len(line) + 1 for line in self.raw]
        self.starts = [0, *accumulate(sizes)]
        """The character at which each line begins, and the length of the text."""
        self.starts[-1] = len(text)
        self.at = 0
        self.code_width: int | None = None
        """By how much the block before is indented, if it is one of indented code."""
        self._open: dict[str, int] = {}
        """Closing line that was looked for -> no such line follows this one."""

    def bare(self, at: int) -> str:
        """A line without indentation and marks of quotation; empty after the last."""
        return self.bares[at] if at < len(self.bares) else ""

    def is_blank(self, at: int) -> bool:
        """Whether a line is blank; so are those before the first and after the last."""
        return at < 0 or not self.bare(at)

    def after_blank(self) -> bool:
        """Whether the line before the one that is read is blank."""
        return self.is_blank(self.at - 1)

    def paragraph(self, at: int) -> int:
        """The line after the last of the lines that are not blank."""
        while at < len(self.raw) and self.raw[at].strip():
            at += 1
        return at

    def find(self, first: int, closes: Callable[[str], bool], name: str) -> int | None:
        """The first line from `first` on that closes a block; None if there is none."""
        if self._open.get(name, len(self.raw) + 1) <= first:
            return None
        for at in range(first, len(self.raw)):
            if closes(self.bare(at)):
                return at
        self._open[name] = first
        return None

    @staticmethod
    def is_indented(line: str) -> bool:
        """Whether a line is indented as code of Markdown is: by four columns."""
        return line.startswith("    ") or line[:4].lstrip(" ").startswith("\t")

    def width(self, at: int) -> int:
        """The number of characters by which a line is indented."""
        line = self.raw[at]
        return len(line) - len(line.lstrip())

    def body(self, at: int, width: int) -> int:
        """The line after the last that is indented by more than `width`, blank lines aside."""
        end = at
        while at < len(self.raw):
            if self.raw[at].strip():
                if self.width(at) <= width:
                    break
                end = at + 1
            at += 1
        return end

    def indented(self) -> int:
        """The line after the last of the lines from this one on that are indented as code is."""
        at = self.at
        while at < len(self.raw) and self.raw[at].strip():
            if not self.is_indented(self.raw[at]):
                break
            at += 1
        return at

    def is_announced(self) -> bool:
        """Whether the paragraph before announces a literal block: it ends in ``::``."""
        at = self.at - 1
        while at >= 0 and not self.raw[at].strip():
            at -= 1
        if at < 0 or not self.raw[at].rstrip().endswith("::"):
            return False
        return self.width(at) < self.width(self.at)

    def skip_blank(self, at: int) -> int:
        """The first line from `at` on that is not blank; the line count if all are."""
        while at < len(self.raw) and not self.raw[at].strip():
            at += 1
        return at

    @cached_property
    def is_chinese(self) -> bool:
        """Whether the text is written in ideographs, and not only quotes some."""
        sample = "".join(self.raw[:_SAMPLE])
        beyond_ascii = len(sample) - len(sample.encode("ascii", "ignore"))
        return beyond_ascii > 0.03 * len(sample) and CJK.search(sample) is not None


def bare_line(line: str) -> str:
    """A line without indentation and marks of quotation."""
    bare = line.strip()
    if bare[:1] == ">" and bare[:3] != ">>>" and (match := _QUOTE.match(bare)):
        return bare[match.end() :].strip()
    return bare
