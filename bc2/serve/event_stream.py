"""A reply that is sent as it grows: server-sent events, for as long as there is a reader."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bc2.serve.exchange import ClientGone, Exchange
from bc2.serve.protocol.api_error import ApiError
from bc2.serve.protocol.replies import event


class EventStream(Response):
    """Sends events.

    Args:
        events: bytes of events, one or several, as they are ready.
        held: closed when all is sent, the client hangs up, or time is over.
        told: makes of an exception what the client is told in place of what is missing.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        exchange: Exchange,
        events: AsyncIterator[bytes],
        held: ExitStack,
        told: Callable[[Exception], ApiError],
    ):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._exchange = exchange
        self._events = events
        self._held = held
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it.

        Raises:
            ClientGone: the client hung up before the end.
        """
        with self._held:
            try:
                await self._exchange.attended(self._send(send))
            except ClientGone:
                raise
            except Exception as error:
                # First, as a client that reads nothing keeps this waiting.
                self._held.close()
                await _send_body(send, event(self._told(error).to_json()), more=False)

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        )  # fmt: skip
        async for some in self._events:
            await _send_body(send, some, more=True)
        await _send_body(send, b"", more=False)


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
