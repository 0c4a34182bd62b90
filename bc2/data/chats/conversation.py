"""One conversation, and where it was read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from bc2.files import canonical_json
from bc2.tokenizer.chat import Message


@dataclass(frozen=True)
class Conversation:
    """Messages in the order in which they were said."""

    messages: tuple[Message, ...]
    """`role` and `content`, and where they are not the default `train` and `weight`
    (`bc2.tokenizer.chat.learns`, `weight_of`)."""
    source: str
    """The name of its source."""
    file: str
    """The file it was read from, as errors name it."""
    row: int
    """Its line in the file, or its place in a list or table, counted from 1."""

    @property
    def where(self) -> str:
        """Its place, for errors."""
        return f"{self.file}, row {self.row:,}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of who said what: equal for conversations that say the same."""
        said = [[message["role"], message["content"]] for message in self.messages]
        return hashlib.sha256(canonical_json(said).encode("utf-8", "surrogatepass")).hexdigest()
