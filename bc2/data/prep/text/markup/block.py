"""What kinds of blocks a text has, and where one is."""

from __future__ import annotations

from enum import Enum
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
