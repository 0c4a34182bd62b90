"""A request on its way between the event loop, which has the client, and the engine's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from bc2.align.samples.sample import Sample
    from bc2.generate.requests import (
        FinishReason,
        Generated,
        Request,
        Score,
        ScoreRequest,
        TokenLogProb,
    )


@dataclass(frozen=True)
class NewToken:
    """A token of one of a request's continuations."""

    choice: int
    token: int
    log_prob: TokenLogProb | None


@dataclass(frozen=True)
class Ended:
    """One of a request's continuations has ended; others may go on."""

    choice: int
    reason: FinishReason


@dataclass(frozen=True)
class Scoring:
    """Texts to score, which are answered together."""

    requests: Sequence[ScoreRequest]
    top_k: int = 0


@dataclass(frozen=True)
class Rewarding:
    """Answers that a reward model is to score, which are answered together."""

    samples: Sequence[Sample]
    """See `bc2.align.reward.score_reader.ReadAnswer.sample`; at least one."""


Asked: TypeAlias = "Request | Scoring | Rewarding"
Answer: TypeAlias = "Generated | list[Score] | list[float]"
Result: TypeAlias = "NewToken | Ended | Answer"
Event: TypeAlias = "Result | Exception"
Sent: TypeAlias = "tuple[Ticket, Event]"


@dataclass(eq=False)
class Ticket:
    """What is asked of one engine, and where its events go.

    Made, given events and ended in the event loop's thread; the engine's reads what is asked.
    """

    asked: Asked
    inbox: Inbox
    streams: bool
    """Whether each new token is told, or the whole answer alone."""
    over: bool = False
    """Whether its last event has come, or nobody waits for it any more."""

    def put(self, event: Event) -> None:
        """Take an event; nothing once it is over."""
        if not self.over:
            self.over = not isinstance(event, NewToken | Ended)
            self.inbox.put(self, event)


@dataclass(eq=False)
class Inbox:
    """The tickets of one client's request, and the events of all of them, in their order."""

    tickets: list[Ticket] = field(default_factory=list)
    _events: list[tuple[Ticket, Event]] = field(default_factory=list)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    def ticket(self, asked: Asked, *, streams: bool = False) -> Ticket:
        """One more ticket."""
        self.tickets.append(Ticket(asked, self, streams))
        return self.tickets[-1]

    @property
    def done(self) -> bool:
        """Whether the last events of all tickets were given out."""
        return not self._events and all(ticket.over for ticket in self.tickets)

    def put(self, ticket: Ticket, event: Event) -> None:
        self._events.append((ticket, event))
        self._ready.set()

    async def events(self) -> list[tuple[Ticket, Result]]:
        """All that has come since the last call, at least one event.

        Raises:
            Exception: why one ticket has no answer.
        """
        await self._ready.wait()
        self._ready.clear()
        events, self._events = self._events, []
        found: list[tuple[Ticket, Result]] = []
        for ticket, event in events:
            if isinstance(event, Exception):
                raise event
            found.append((ticket, event))
        return found

    async def answers(self) -> dict[Ticket, Answer]:
        """The last events of all tickets. Raises: see `events`."""
        found: dict[Ticket, Answer] = {}
        while not self.done:
            events = await self.events()
            found |= {
                ticket: last for ticket, last in events if not isinstance(last, NewToken | Ended)
            }
        return found
