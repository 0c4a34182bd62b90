"""What samples depend on beside conversations, tokenizer and layout. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TrainOn = Literal["assistant", "all"]
TooLong = Literal["stop", "drop", "rounds"]
Faulty = Literal["stop", "drop"]


@dataclass(frozen=True)
class RenderSettings:
    """What samples depend on beside conversations, tokenizer and layout."""

    window: int
    """Tokens of a row: the longest sample."""
    train_on: TrainOn = "assistant"
    """Which messages are learnt that do not say it themselves."""
    too_long: TooLong = "stop"
    """Under "rounds", a sample that does not fit keeps its first whole rounds."""
