"""Completions and chats: from the ids of their prompts to a reply, whole or as it grows."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic

from starlette.responses import Response

from bc2.generate.requests import Generated, Request, TokenLogProb
from bc2.generate.sampling_config import SamplingConfig
from bc2.serve.event_stream import EventStream
from bc2.serve.exchange import Exchange
from bc2.serve.growing_choices import GrowingChoices, whole
from bc2.serve.json_response import json_response
from bc2.serve.protocol.pieces import Piece, Usage
from bc2.serve.protocol.replies import DONE, Asked, Reply, event
from bc2.serve.served_models import SpeakingModel
from bc2.serve.service import Service
from bc2.serve.ticket import Ended, Inbox, NewToken, Result, Ticket


@dataclass
class Answering(Generic[Asked]):
    """What is needed to answer one request.

    Attributes:
        prompts: the ids of each prompt.
        settings: of their answers, one for each prompt; None: nothing is to be generated.
        echoed: the piece that each answer begins with; none: no prompt is echoed.
        reply: makes the reply of pieces.
    """

    service: Service
    exchange: Exchange
    model: SpeakingModel
    asked: Asked
    prompts: Sequence[list[int]]
    settings: Sequence[SamplingConfig] | None
    echoed: Sequence[Piece]
    reply: Reply[Asked]

    def __post_init__(self) -> None:
        self.exchange.prompt_tokens = sum(map(len, self.prompts))
        self._cached = 0

    async def response(self, held: ExitStack) -> Response:
        """The reply; a stream from its first token on, so that before it errors have a status.

        Args:
            held: what is to be closed when the reply has been sent.
        """
        inbox = Inbox()
        tickets = [
            inbox.ticket(Request(ids, settings), streams=self.asked.stream)
            for ids, settings in zip(self.prompts, self.settings or (), strict=False)
        ]
        held.enter_context(self.service.working(self.model, inbox))
        if not self.asked.stream:
            answers = await self.exchange.attended(inbox.answers())
            choices = self._choices([answers[ticket] for ticket in tickets])
            held.close()
            tokens = sum(len(piece.ids) for pieces in choices for piece in pieces)
            usage = self._usage()
            return await self.service.aside(
                lambda: json_response(self.reply.whole(choices, usage)), tokens
            )
        first = await self.exchange.attended(inbox.events()) if tickets else []
        self.service.metrics.first_token.observe(self.exchange.seconds)
        return EventStream(
            self.exchange, self._events(inbox, tickets, first), held.pop_all(), self.service.told
        )

    # --------------------------------------------------------------------------------- whole

    def _choices(self, answers: Sequence[object]) -> list[list[Piece]]:
        if self.settings is None:
            ended = Piece("", (), None if self.asked.top_count is None else (), "length")
            return [[self.echoed[at // self.asked.n], ended] for at in range(self._count)]
        choices: list[list[Piece]] = []
        for answer in answers:
            assert isinstance(answer, Generated)
            self._took(answer)
            for made in answer.continuations:
                begin = [self.echoed[len(choices) // self.asked.n]] if self.echoed else []
                choices.append([*begin, whole(made)])
                self._say(choices[-1])
        return choices

    @property
    def _count(self) -> int:
        return len(self.prompts) * self.asked.n

    def _took(self, answer: Generated) -> None:
        self._cached += answer.shared_tokens
        self.exchange.new_tokens += sum(len(made.ids) for made in answer.continuations)

    def _say(self, pieces: Sequence[Piece]) -> None:
        if self.service.config.log_prompts:
            self.exchange.said.append("".join([piece.text for piece in pieces]))

    def _usage(self) -> Usage:
        return Usage(self.exchange.prompt_tokens, self.exchange.new_tokens, self._cached)

    # -------------------------------------------------------------------------------- stream

    async def _events(
        self, inbox: Inbox, tickets: Sequence[Ticket], first: list[tuple[Ticket, Result]]
    ) -> AsyncIterator[bytes]:
        decode, stop = self.model.text_bytes, self.asked.stop
        growing = {ticket: GrowingChoices(decode, stop, self.asked.n) for ticket in tickets}
        places = {ticket: at * self.asked.n for at, ticket in enumerate(tickets)}
        if begin := self._beginning():
            yield begin
        events, last = first, time.monotonic()
        while events:
            parts: list[bytes] = []
            for ticket in dict.fromkeys(ticket for ticket, _ in events):
                own = [event for other, event in events if other is ticket]
                for choice, piece in self._grown(growing[ticket], own):
                    parts.append(self._chunk(places[ticket] + choice, piece))
            if some := b"".join(parts):
                yield some
            if inbox.done:
                break
            events = await inbox.events()
            now = time.monotonic()
            self.service.metrics.between_tokens.observe(now - last)
            last = now
        if self.asked.include_usage:
            yield event(self.reply.usage_chunk(self._usage()))
        yield DONE

    def _beginning(self) -> bytes:
        """The prompts, where they are echoed."""
        parts = []
        for choice in range(self._count if self.echoed else 0):
            piece = self.echoed[choice // self.asked.n]
            parts.append(self.reply.chunk_bytes(choice, piece))
            if self.settings is None:
                parts.append(self.reply.chunk_bytes(choice, Piece("", (), (), "length")))
        return b"".join(parts)

    def _grown(self, growing: GrowingChoices, events: Sequence[Result]) -> list[tuple[int, Piece]]:
        tokens = [event for event in events if isinstance(event, NewToken)]
        found = list(growing.grown(tokens))
        for answer in events:
            if isinstance(answer, Ended):
                found.append((answer.choice, growing.ended(answer)))
            if isinstance(answer, Generated):
                self._took(answer)
                for made in answer.continuations if self.service.config.log_prompts else ():
                    self._say([whole(made)])
        return found

    def _chunk(self, choice: int, piece: Piece) -> bytes:
        """An event, if there is something to tell."""
        told = piece.text or piece.finish_reason
        wanted = self.asked.return_token_ids or self.asked.top_count is not None
        return self.reply.chunk_bytes(choice, piece) if told or wanted else b""


def echoed_piece(ids: Sequence[int], text: str, log_probs: Sequence[TokenLogProb] | None) -> Piece:
    """A prompt as the beginning of its answer.

    Args:
        log_probs: of all tokens but the first, if they are asked for.
    """
    numbers = None if log_probs is None else (None, *log_probs)
    return Piece(text, ids, numbers, echoed=True)


def new_id(prefix: str) -> str:
    """The id of a reply."""
    return f"{prefix}-{secrets.token_hex(12)}"


def fresh_seed() -> int:
    """The seed of a request that gives none."""
    return secrets.randbits(63)
