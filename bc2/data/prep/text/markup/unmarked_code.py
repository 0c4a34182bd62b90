"""Tell code, settings, paths and listings that stand in prose without any markup.

Older articles and pages that were stripped of their tags have such lines. They say as much as
prose does, but rules about the form of sentences take them for noise.
"""

from __future__ import annotations

import re

from bc2.data.prep.text.markup.prose_or_code import has_function_words

#: Words, numbers, and the marks of code, each at most as often in a row as code has it.
_TOKENS = re.compile(
    r"(?:[\s\w.,:;()\[\]{}'\"=/\\+*<>-]|[!#$%&|`?~^@](?![!?`~^@%])"
    r"|(?<=[!#$&|`])[#$&|`!]|[「」『』“”‘’（），。；：、…])++"
)

#: An assignment, a call, fields between colons, an address, a path, a name with underscores or
#: several full stops, options and placeholders of a command, alternatives in brackets, the dots of
#: a table of contents, digests, columns.
_SIGNS = re.compile(
    r"[\w\])}\"'][ \t]{0,40}[-+*/:!<>]?=|^[ \t「]*=\w|\w\([^()\n]*\)"
    r"|\w:[^\s:]{1,40}:[^\s:]|\d\.\d{1,3}\.\d{1,3}\.\d|(?:[/\\][\w.+{}-]+){2}"
    r"|[A-Za-z0-9]_[A-Za-z0-9]|\b[A-Za-z]\w*\.\w+\.\w"
    r"|(?<!\S)\[*-{1,2}[A-Za-z]|(?<!\S)[\[(|]*<[A-Za-z][\w-]*>|\s\|\s[^|\n]*[\]})]"
    r"|\w[ ]\.{6}|\b(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})\b|\b(?:SHA|MD)\d{1,3}:\w"
    r"|\S(?:[ ]{2,}|\t[ \t]*)\S+(?:[ \t]\S+)?(?:[ ]{2,}|\t[ \t]*)\S|[{};]\s*$|^[ \t]*[<\\]\w",
    re.MULTILINE,
)

#: One name, perhaps an item of a list.
_NAME = re.compile(r"\A\s*+(?:(?:[-*+]|\d{1,3}[.)])\s++)?[A-Za-z_$][\w.:/@$-]{2,40}[.,:;]?\s*\Z")
_ENCODED = re.compile(r"[A-Za-z0-9+/]{64}")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def is_unmarked_code(piece: str) -> bool:
    """Whether a piece of text is code or a listing, and neither a sentence nor noise.

    Noise has marks in an order that code does not have them in, or is encoded data.
    """
    if not piece.isascii() and len(_WIDE.findall(piece)) * 3 > len(piece):
        return False
    if has_function_words(piece, 2):  # a sentence, which may have a path or a name in it
        return False
    if _NAME.match(piece) and piece.isascii():
        return True
    if not _SIGNS.search(piece) or not _TOKENS.fullmatch(piece):
        return False
    return not any(_is_encoded(run) for run in _ENCODED.findall(piece))


def without_unmarked_code(prose: str) -> str:
    """A text without its lines of such code."""
    lines = prose.split("\n")
    return "\n".join(line for line in lines if not is_unmarked_code(line))


def _is_encoded(run: str) -> bool:
    """Whether a run is base64, of both cases and with digits, and not a name or a digest."""
    return not run.islower() and not run.isupper() and any(map(str.isdigit, run))
