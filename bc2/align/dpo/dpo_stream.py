"""The stream of pairs of direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field

from bc2.align.dpo.own_answers import OwnAnswers
from bc2.align.samples.row_stream import RowStream
from bc2.train.stream import StreamState

_FIRST = "first_answer_tokens"


@dataclass(frozen=True)
class DpoStream(RowStream):
    """Steps of packed pairs; with them goes how long the policy's first answers were."""

    answers: OwnAnswers | None = field(default=None, kw_only=True)

    def state(self) -> StreamState | None:
        first = None if self.answers is None else self.answers.first_tokens
        return None if first is None else StreamState({_FIRST: first})

    def restore(self, state: StreamState | None) -> None:
        if self.answers is not None:
            self.answers.first_tokens = None if state is None else state.values.get(_FIRST)
