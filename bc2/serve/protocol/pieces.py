"""What an answer grows by, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bc2.generate.requests import TokenLogProb


@dataclass(frozen=True)
class Piece:
    """What is added to an answer at once."""

    text: str
    """Whole characters that are ready."""
    ids: Sequence[int]
    """Tokens; their text may still be held back."""
    log_probs: Sequence[TokenLogProb | None] | None = None
    """Of each of `ids`; None for the first token of a text, which nothing predicts. None: they
    were not asked for."""
    finish_reason: Literal["stop", "length"] | None = None
    """On the last piece of an answer."""
    echoed: bool = False
    """It is of the prompt."""


@dataclass(frozen=True)
class Usage:
    """The tokens of a request."""

    prompt_tokens: int
    """Of all its prompts."""
    completion_tokens: int
    """Of all its answers."""
    cached_tokens: int = 0
    """Tokens of the prompts that were in the cache already."""

    def to_json(self) -> dict[str, Any]:
        """As OpenAI has it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
