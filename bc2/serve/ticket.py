"""A request on its way between the event loop, which has the client, and the engine's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bc2.generate.requests import Generated, Request, Score, ScoreRequest, TokenLogProb


@dataclass(frozen=True)
class NewToken:
    """A token of one of a request's continuations."""

    choice: int
    token: int
    log_prob: TokenLogProb | None


@dataclass(frozen=True)
class Scoring:
    """Texts to score, which are answered together."""

    requests: Sequence[ScoreRequest]
    top_k: int = 0


@dataclass(eq=False)
class Ticket:
    """What one request asks of one engine, and what has come of it.

    It is made, read and ended in the event loop's thread. The engine's thread reads what it asks.

    Args:
        streams: whether each new token is told, or the whole answer alone.
    """

    asked: Request | Scoring
    streams: bool = False
    over: bool = False
    """Whether its last event has come, or nobody waits for it any more."""
    _events: list[NewToken | Generated | list[Score] | Exception] = field(default_factory=list)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: NewToken | Generated | list[Score] | Exception) -> None:
        """Take an event; nothing once it is over."""
        if self.over:
            return
        self.over = not isinstance(event, NewToken)
        self._events.append(event)
        self._ready.set()

    async def events(self) -> list[NewToken | Generated | list[Score]]:
        """All that has come since the last call, at least one event.

        Raises:
            Exception: why there is no answer, which is the last event.
        """
        await self._ready.wait()
        self._ready.clear()
        events, self._events = self._events, []
        found: list[NewToken | Generated | list[Score]] = []
        for event in events:
            if isinstance(event, Exception):
                raise event
            found.append(event)
        return found

    async def answer(self) -> Generated | list[Score]:
        """The last event, where tokens are not waited for. Raises: see `events`."""
        while True:
            last = (await self.events())[-1]
            if not isinstance(last, NewToken):
                return last
