"""What an evaluation of a run measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One evaluation."""

    facts: Mapping[str, float]
    """The metrics, by name, and what else its row in ``metrics.jsonl`` says."""
    text: str
    """For a person: ``held-out loss 2.0143 nats/token``."""
    samples: Sequence[Mapping[str, str]] = ()
    """``prompt`` and ``text``, what a model made of it."""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """What the finished checkpoint's facts say beside `facts`. The log, which is part of what a
    checkpoint's digest is of, does not have it."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """What a person should know of it, by a name for each kind."""

    @property
    def broken(self) -> list[str]:
        """The names of what is not finite."""
        return [name for name, value in self.facts.items() if not math.isfinite(value)]

    def __str__(self) -> str:
        return self.text
