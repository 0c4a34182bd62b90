"""What an engine has done so far. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class EngineStats:
    """Counts and seconds since the engine was made."""

    steps: int = 0
    """Forward passes of the model."""
    prompt_tokens: int = 0
    """Tokens read that were not chosen in the pass before: of prompts, of texts to score, and of
    sequences that were preempted."""
    shared_tokens: int = 0
    """Tokens whose keys were in the cache already."""
    new_tokens: int = 0
    preemptions: int = 0
    settled: int = 0
    """Near ties that were settled."""
    forward_s: float = 0.0
    sample_s: float = 0.0
    """Choosing tokens, without the settling of near ties."""
    settle_s: float = 0.0


@contextmanager
def timed(stats: EngineStats, name: str) -> Iterator[None]:
    """Add the seconds of a block to a field."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        setattr(stats, name, getattr(stats, name) + time.perf_counter() - begin)
