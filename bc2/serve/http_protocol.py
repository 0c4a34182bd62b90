"""HTTP as uvicorn speaks it, with bounds on what a client that has not been heard yet can hold."""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from bc2.serve.protocol.api_error import ApiError, headers_too_large, no_http

#: Seconds that the headers of a request may take.
HEADER_S = 30.0

#: The most bytes of headers.
HEADER_BYTES = 1 << 16

#: The most requests that are read while the one before them is answered.
AHEAD = 8

#: Seconds in which a client may leave all unread that is ready for it.
UNREAD_S = 60.0


class BoundedHttp(HttpToolsProtocol):
    """A connection that is closed if its headers are too slow or too many, or nobody reads it."""

    _deadline: asyncio.TimerHandle | None = None
    """There while headers are awaited."""
    _watch: asyncio.TimerHandle | None = None
    """There while more is ready than the client reads."""
    _pending = 0
    """Bytes of headers so far."""
    _data = b""
    """What is being read."""
    _answered: RequestResponseCycle | None = None
    """The request whose turn it is; `cycle` is the last that was read."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._watch_no_more()
        if self._answered is not None and not self._answered.response_complete:
            # uvicorn tells the last request that was read.
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        awaited, self._data = self._deadline, data
        super().data_received(data)
        self._data = b""
        if self._deadline is None:
            return
        if awaited is not self._deadline:
            # Data that has the end of another request too does not count.
            self._pending = len(data) if self.cycle is None else 0
        else:
            self._pending += len(data)
        if self._pending > HEADER_BYTES:
            self._refuse(headers_too_large(HEADER_BYTES))

    # ------------------------------------------------------------------------------- headers

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_no_more()
        self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those that come after a body say nothing here, and have no end.
        if self._deadline is not None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._wait_no_more()
        super().on_headers_complete()
        if 0 < len(self.pipeline) <= AHEAD:
            # uvicorn reads no more meanwhile, and would not see that the client hangs up.
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEADER_S, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(no_http())

    def _refuse(self, error: ApiError) -> None:
        """Answer what is no request, unless another request is being answered; and hang up."""
        if self.cycle is None or self.cycle.response_complete:
            body = orjson.dumps(error.to_json())
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    # ------------------------------------------------------------------------------ upgrades

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() is not None

    def handle_websocket_upgrade(self) -> None:
        """Upgrade to nothing: take the request as if it had not asked.

        Java's client offers HTTP/2 so; httptools takes the body for another protocol then.
        """
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name not in (b"upgrade", b"http2-settings"):
                head += [name, b": ", value, b"\r\n"]
        rest = self._data[stopped.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    # --------------------------------------------------------------------------- slow readers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_on()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch_no_more()

    def _watch_on(self) -> None:
        self._watch_no_more()
        unread = self.transport.get_write_buffer_size()
        self._watch = self.loop.call_later(UNREAD_S, self._see, unread)

    def _see(self, before: int) -> None:
        """Hang up if nothing was read meanwhile."""
        if self.transport.get_write_buffer_size() < before:
            self._watch_on()
        else:
            self.transport.abort()

    def _watch_no_more(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
