"""Link definitions, lines of pictures and addresses."""

from __future__ import annotations

import re

from bc2.data.prep.text.markup.lines import Lines

DEFINITION = re.compile(
    r"\A(?:\[(?!\^)[^\]\n]{1,999}\]:(?:[ \t]|<|/|\#|(?:https?|ftp|mailto):)"
    r"|\.\. (?:_[^:\n]+:|\|[^|\n]+\| |\[[^\]\n]+\] https?:))"
)
_LEADS_TO = r"(?:\([^()\n]*+(?:\([^()\n]*+\)[^()\n]*+)*+\)|\[[^\]\n]*+\])"
ADDRESS = re.compile(
    rf"\A(?:(?:[-*+] )?(?:\[?!\[[^\]\n]*+\]{_LEADS_TO}(?:\]{_LEADS_TO})?[ \t]*+)++\\?$"
    r"|<?https?://[^\s<>]++>?[.。]?$)"
)


def definition(lines: Lines, bare: str) -> int | None:
    if not DEFINITION.match(bare):
        return None
    if bare[0] == ".":  # with the options of a picture below it
        return max(lines.at + 1, lines.body(lines.at + 1, lines.width(lines.at)))
    return lines.at + 1


def address(lines: Lines, bare: str) -> int | None:
    return lines.at + 1 if ADDRESS.match(bare) else None
