"""Tell prose from code by its words and marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

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
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


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
    has_ideographs = not text.isascii() and CJK.search(text) is not None
    if has_ideographs and marks > 0.1 * solid:  # with code, formulas and links between them
        text = _INLINE.sub(r"\1", text)
        solid = len("".join(text.split())) + 1
        marks = len(_CODE_MARKS.findall(text))
    ends = text[-1:] in "。！？．；"  # as a sentence, which may be about paths and options
    if marks > (0.3 if ends else 0.1) * solid:
        return False
    if has_ideographs and len(CJK.findall(text)) > (0.1 if ends else 0.2) * solid:
        return True
    if len(_FUNCTION_WORDS.findall(text)) * 12 >= len(words):
        return True
    return marks == 0 and not (text[:1].islower() or text[:1] in "-$./")


def is_sentence(text: str) -> bool:
    """Whether a line of English begins and ends as a sentence does, and has its words."""
    text = text.strip()
    ends = text[:1].isupper() and text[-1:] in ".!?"
    return ends and len(_FUNCTION_WORDS.findall(text)) * 12 >= len(text.split())


def has_function_words(text: str, count: int) -> bool:
    """Whether a text has so many words that sentences have and commands do not."""
    return next(islice(_FUNCTION_WORDS.finditer(text), count - 1, None), None) is not None
