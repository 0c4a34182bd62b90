"""The answers that a policy writes as it is trained, and how long the first ones were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bc2.align.samples.written_answers import AnswerWriter
from bc2.train.engines.base import Engine


class WrittenNow(NamedTuple):
    samples: Sequence[Mapping[str, str]]
    """``prompt`` and ``text``."""
    mean_tokens: float
    """Of the answers; 0 where none were asked for."""


@dataclass
class OwnAnswers:
    """Writes answers; remembers the mean length of the first ones, which are the reference's where
    the policy begins with it."""

    writer: AnswerWriter
    first_tokens: float | None = None
    """None: there was no evaluation before training. It is part of every checkpoint, so that what
    is measured does not depend on where a run was resumed."""

    def __call__(self, engine: Engine, check: Callable[[], None]) -> WrittenNow:
        # Where one rank can do it alone, the others have written nothing.
        shared = engine.mesh.world.broadcast_object(self.writer(engine, check))
        assert shared is not None
        count = len(shared)
        mean = sum(tokens for *_, tokens in shared) / count if count else 0.0
        return WrittenNow([{"prompt": asked, "text": text} for asked, text, _ in shared], mean)
