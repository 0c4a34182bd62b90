"""One model's engine at work: its session, texts to score, and the tickets of both.

All of it runs in the engine's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from bc2.errors import Bc2Error
from bc2.generate.engine import InferenceEngine
from bc2.generate.requests import Request, Score
from bc2.serve.score_memory import ScoreMemory, joined, leaders, rest_of
from bc2.serve.ticket import Ended, NewToken, Scoring, Sent, Ticket

if TYPE_CHECKING:
    import torch

    from bc2.generate.session import Session


class Lane:
    """The requests to one engine: a step of the session and a pass of scoring, by turns."""

    def __init__(self, engine: InferenceEngine):
        self.engine = engine
        #: How often in a row a forward pass has failed.
        self.failures = 0
        self._tickets: dict[int, Ticket] = {}
        self._scorings: deque[tuple[Ticket, Iterator[list[Score] | None]]] = deque()
        self._memory = ScoreMemory()
        self._events: list[Sent] = []
        self._opened: AbstractContextManager[Session] | None = None
        self._session: Session | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.engine.runner.device

    @property
    def most_running(self) -> int:
        """How many sequences decode together at most."""
        return self.engine.config.most_running

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._tickets or self._scorings or self._events)

    @property
    def waiting(self) -> int:
        """Sequences that wait for room, as another thread may ask at any time."""
        session = self._session
        return 0 if session is None else session.waiting

    def begin(self, ticket: Ticket) -> None:
        """Take what a ticket asks."""
        try:
            if isinstance(ticket.asked, Request):
                self._tickets[self._live_session().submit(ticket.asked)] = ticket
            else:
                assert isinstance(ticket.asked, Scoring)
                self._scorings.append((ticket, self._scored(ticket.asked)))
        except Exception as error:
            self._events.append((ticket, error))

    def cancel(self, ticket: Ticket) -> None:
        """Work no more on a ticket, and take back what it holds; nothing if it is over."""
        for index, other in list(self._tickets.items()):
            if other is ticket:
                del self._tickets[index]
                session = self._live_session()
                session.cancel(index)
                session.finished()
        self._scorings = deque(one for one in self._scorings if one[0] is not ticket)

    def turn(self) -> list[Sent]:
        """A step of the session, and a pass of scoring; what has come of them."""
        if self._tickets:
            try:
                self._step()
            except Exception as error:
                self._fail(error)
        if self._scorings:
            self._score()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Give back all memory."""
        self._tickets.clear()
        self._scorings.clear()
        self._close_session()

    # ------------------------------------------------------------------------------ sessions

    def _live_session(self) -> Session:
        if self._session is None:
            self._opened = self.engine.open()
            self._session = self._opened.__enter__()
        return self._session

    def _close_session(self) -> None:
        if self._opened is not None:
            self._opened.__exit__(None, None, None)
        self._opened = self._session = None

    def _step(self) -> None:
        session = self._live_session()
        session.step()
        self.failures = 0
        for live, token in session.tokens:
            ticket = self._tickets[live.index]
            if ticket.streams:
                number = live.log_probs[-1] if live.log_probs else None
                self._events.append((ticket, NewToken(live.number, token, number)))
        for live in session.ended:
            ticket = self._tickets[live.index]
            if ticket.streams and live.reason is not None:
                self._events.append((ticket, Ended(live.number, live.reason)))
        for answer in session.finished():
            self._events.append((self._tickets.pop(answer.index), answer))

    def _fail(self, error: Exception) -> None:
        """A pass has failed: what its sequences have read is not known, so all of them end."""
        self.failures += 1
        self._events += [(ticket, error) for ticket in self._tickets.values()]
        self._tickets.clear()
        self._close_session()

    # -------------------------------------------------------------------------------- scores

    def _score(self) -> None:
        """A pass of the scoring whose turn it is."""
        ticket, passes = self._scorings.popleft()
        try:
            found = next(passes)
        except Exception as error:
            self.failures += not isinstance(error, Bc2Error)
            self._events.append((ticket, error))
            return
        if found is None:
            self._scorings.append((ticket, passes))
        else:
            self._events.append((ticket, found))

    def _scored(self, asked: Scoring) -> Iterator[list[Score] | None]:
        """None after each pass, and the scores at the end."""
        done: dict[int, Score] = {}
        first = leaders(asked.requests)
        others = sorted(set(range(len(asked.requests))) - set(first))
        for some in (first, others):
            known = {at: self._memory.known(asked.requests[at], asked.top_k) for at in some}
            left = {at: rest_of(asked.requests[at], known[at]) for at in some}
            todo = [(at, rest) for at, rest in left.items() if rest is not None]
            rests: dict[int, Score] = {}
            for passed in self.engine.score_passes([rest for _, rest in todo], top_k=asked.top_k):
                rests |= {todo[score.index][0]: score for score in passed}
                yield None
            for at in some:
                done[at] = joined(at, known[at], rests.get(at))
                self._memory.add(asked.requests[at], done[at], asked.top_k)
        yield [done[at] for at in range(len(asked.requests))]
