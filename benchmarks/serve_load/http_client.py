"""A small HTTP client on raw sockets: it times each event as it arrives, and can hang up.

It parses nothing while an answer comes in but where events end, so that a hundred clients in one
process take little of a machine that they share with the server. Each request has a connection
of its own. Nothing outside of the standard library is imported.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

#: Seconds after which a request counts as never answered.
PATIENCE = 600.0


@dataclass(frozen=True)
class HangUp:
    """When a client goes away."""

    when: Literal["sending", "waiting", "reading"]
    """"sending": in the midst of its request; "waiting": some time after it; "reading": after
    some events of the answer."""
    after: float
    """A share of the body; seconds; a number of events."""
    reset: bool = False
    """Whether the connection is reset (RST), as by a killed machine, and not closed (FIN)."""


@dataclass
class Reply:
    """What came back. Times are those of `time.perf_counter`."""

    began: float
    """When the request was sent."""
    status: int = 0
    """0: nothing came back."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    """Of an answer that is no stream."""
    events: list[bytes] = field(default_factory=list)
    """What the ``data:`` lines of a stream say."""
    arrivals: list[float] = field(default_factory=list)
    """When each event came."""
    ended: float = 0.0
    whole: bool = False
    """Whether the answer came to its end; a stream, to its ``[DONE]``."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events of a stream but the last, read."""
        return [json.loads(event) for event in self.events if event != b"[DONE]"]

    @property
    def seconds(self) -> float:
        return self.ended - self.began


async def ask(
    url: str,
    path: str,
    body: Mapping[str, Any] | bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    hang_up: HangUp | None = None,
    patience: float = PATIENCE,
) -> Reply:
    """Send one request, GET without a body, and read the answer to its end.

    Raises:
        OSError: there is no server.
        TimeoutError: the answer did not end in time.
    """
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    head = _head(url, path, data, headers or {})
    place = urlsplit(url)
    exchange = _Exchange(hang_up)
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: exchange, place.hostname, place.port
    )
    try:
        exchange.send(head, data or b"")
        await asyncio.wait_for(exchange.over, patience)
    finally:
        transport.abort()
    return exchange.reply


def _head(url: str, path: str, data: bytes | None, more: Mapping[str, str]) -> bytes:
    lines = [f"{'GET' if data is None else 'POST'} {path} HTTP/1.1"]
    fields = {"Host": urlsplit(url).netloc, "Connection": "close", **more}
    if data is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class _Exchange(asyncio.Protocol):
    """A request and its answer on one connection."""

    def __init__(self, hang_up: HangUp | None):
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reply = Reply(time.perf_counter())
        self._hang_up = hang_up
        self._transport: Any = None
        self._raw = b""
        self._text = b""
        self._length: int | None = None
        self._chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, head: bytes, body: bytes) -> None:
        goes = self._hang_up
        self.reply.began = time.perf_counter()
        if goes is not None and goes.when == "sending":
            self._transport.write(head + body[: int(len(body) * goes.after)])
            # The server has read it, and waits for more.
            asyncio.get_running_loop().call_later(0.01, self._go)
            return
        self._transport.write(head + body)
        if goes is not None and goes.when == "waiting":
            asyncio.get_running_loop().call_later(goes.after, self._go)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self.over.done():
            return
        self._raw += data
        if not self.reply.status and not self._read_head():
            return
        if self._chunked:
            self._read_chunks(now)
        else:
            self._text, self._raw = self._text + self._raw, b""
            if self._length is not None and len(self._text) >= self._length:
                self._finish(True)

    def connection_lost(self, error: Exception | None) -> None:
        # Without a length the end of the connection is the end of the answer.
        told = self._chunked or self._length is not None
        self._finish(error is None and bool(self.reply.status) and not told)

    def _read_head(self) -> bool:
        head, end, rest = self._raw.partition(b"\r\n\r\n")
        if not end:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        self.reply.headers = {name.lower(): value.strip() for name, _, value in pairs}
        self.reply.status = int(first.split()[1])
        self._chunked = self.reply.headers.get("transfer-encoding", "").lower() == "chunked"
        length = self.reply.headers.get("content-length")
        self._length = int(length) if length else None
        self._raw = rest
        return True

    def _read_chunks(self, now: float) -> None:
        while True:
            size, end, rest = self._raw.partition(b"\r\n")
            count = int(size.split(b";")[0] or b"0", 16) if end else -1
            if count < 0 or len(rest) < count + 2:
                return
            self._text += rest[:count]
            self._raw = rest[count + 2 :]
            if not count:
                self._finish(True)
                return
            if self.reply.headers.get("content-type", "").startswith("text/event-stream"):
                self._read_events(now)

    def _read_events(self, now: float) -> None:
        *events, self._text = re.split(rb"\r?\n\r?\n", self._text)
        for event in events:
            if event.startswith(b"data:"):
                self.reply.events.append(event[5:].strip())
                self.reply.arrivals.append(now)
        goes = self._hang_up
        if goes is not None and goes.when == "reading" and len(self.reply.events) >= goes.after:
            self._go()

    def _go(self) -> None:
        """Hang up."""
        if self.over.done():
            return
        if self._hang_up is not None and self._hang_up.reset:
            line = self._transport.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._finish(False)

    def _finish(self, whole: bool) -> None:
        if self.over.done():
            return
        reply = self.reply
        reply.ended = time.perf_counter()
        streamed = bool(reply.events)
        reply.whole = whole and (not streamed or reply.events[-1] == b"[DONE]")
        reply.body = b"" if streamed else self._text
        self.over.set_result(None)
