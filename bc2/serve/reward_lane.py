"""A reward model at work: answers of all clients, packed into passes in the order they came in.

All of it runs in the engine's thread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from bc2.align.reward.score_answers import batch_tokens, score_pass
from bc2.align.samples.sample import Sample
from bc2.model.transformer import Transformer
from bc2.serve.ticket import Rewarding, Sent, Ticket


@dataclass(eq=False)
class _Asked:
    """A ticket, and what it has so far."""

    ticket: Ticket
    samples: deque[Sample]
    scores: list[float] = field(default_factory=list)


class RewardLane:
    """The answers that one reward model is to score.

    Args:
        most_running: how many are counted as running, where others wait.
    """

    def __init__(self, model: Transformer, most_running: int):
        self.model = model
        self.most_running = most_running
        #: How often in a row a pass has failed.
        self.failures = 0
        #: What was scored so far.
        self.answers = self.tokens = 0
        self._asked: deque[_Asked] = deque()
        self._events: list[Sent] = []
        self._budget = batch_tokens(self.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._asked or self._events)

    @property
    def waiting(self) -> int:
        """Answers that have no score yet, as another thread may ask at any time."""
        return sum(len(one.samples) for one in tuple(self._asked))

    def begin(self, ticket: Ticket) -> None:
        """Take what a ticket asks."""
        assert isinstance(ticket.asked, Rewarding)
        self._asked.append(_Asked(ticket, deque(ticket.asked.samples)))

    def cancel(self, ticket: Ticket) -> None:
        """Work no more on a ticket; nothing if it is over."""
        self._asked = deque(one for one in self._asked if one.ticket is not ticket)

    def turn(self) -> list[Sent]:
        """A pass; what has come of it."""
        if self._asked:
            some = self._next()
            try:
                scores = score_pass(self.model, [sample for _, sample in some]).tolist()
                self.failures = 0
            except Exception as error:
                self._fail({one.ticket for one, _ in some}, error)
            else:
                self._give(some, scores)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Hold nothing any more."""
        self._asked.clear()

    def _next(self) -> list[tuple[_Asked, Sample]]:
        """The first samples that fit into a pass, at least one."""
        found: list[tuple[_Asked, Sample]] = []
        tokens = 0
        for one in self._asked:
            for sample in one.samples:
                tokens += len(sample.tokens)
                if found and tokens > self._budget:
                    return found
                found.append((one, sample))
        return found

    def _give(self, some: list[tuple[_Asked, Sample]], scores: list[float]) -> None:
        for (one, sample), score in zip(some, scores, strict=True):
            one.samples.popleft()
            one.scores.append(score)
            self.answers += 1
            self.tokens += len(sample.tokens)
        while self._asked and not self._asked[0].samples:
            done = self._asked.popleft()
            self._events.append((done.ticket, done.scores))

    def _fail(self, tickets: set[Ticket], error: Exception) -> None:
        """A pass has failed, and with it whose answers were in it."""
        self.failures += 1
        self._events += [(ticket, error) for ticket in tickets]
        self._asked = deque(one for one in self._asked if one.ticket not in tickets)
