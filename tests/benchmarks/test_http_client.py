"""The load client reads what servers send, however it is cut into pieces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

import pytest
from serve_load.http_client import HangUp, Reply, ask

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
EVENTS = ['{"a": 1}', '{"a": "é\\n\\n"}', "[DONE]"]


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def streamed(between: str = "\n\n") -> bytes:
    """An answer in three chunks, which end where no event does."""
    text = "".join(f"data: {event}{between}" for event in EVENTS).encode()
    return STREAM_HEAD + chunked(text[:7], text[7:20], text[20:])


def answered(data: bytes, step: int, hang_up: HangUp | None = None) -> tuple[Reply, bytes]:
    """What the client makes of an answer that comes in pieces, and what it sent."""
    sent = bytearray()

    async def serve(
        done: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            sent.extend(await reader.readuntil(b"}"))
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()
        done.set()

    async def both() -> Reply:
        done = asyncio.Event()
        server = await asyncio.start_server(partial(serve, done), "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            reply = await ask(url, "/v1/x", {"b": 2}, headers={"X-Y": "z"}, hang_up=hang_up)
            await done.wait()
            return reply

    return asyncio.run(both()), bytes(sent)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("between", ["\n\n", "\r\n\r\n"])
def test_a_stream_in_pieces(step: int, between: str) -> None:
    reply, sent = answered(streamed(between) + b"0\r\n\r\n", step)
    assert (reply.status, reply.whole, reply.body) == (200, True, b"")
    assert reply.events == [event.encode() for event in EVENTS]
    assert reply.chunks == [{"a": 1}, {"a": "é\n\n"}]
    assert sorted(reply.arrivals) == reply.arrivals
    assert reply.began <= reply.arrivals[0] <= reply.arrivals[-1] <= reply.ended
    assert sent.startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert b"\r\nX-Y: z\r\n" in sent
    assert b"\r\nContent-Length: 8\r\n" in sent


BODY = b'{"error": {"message": "no"}}'
PLAIN: list[Callable[[], bytes]] = [
    lambda: b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY),
    lambda: b"HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n"
    + chunked(BODY[:5], BODY[5:]) + b"0\r\n\r\n",
    lambda: b"HTTP/1.0 404 Not Found\r\n\r\n" + BODY,
]  # fmt: skip


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("data", PLAIN)
def test_an_answer_that_is_no_stream(data: Callable[[], bytes], step: int) -> None:
    reply, _ = answered(data(), step)
    assert (reply.status, reply.whole, reply.events) == (404, True, [])
    assert reply.json == {"error": {"message": "no"}}


@pytest.mark.parametrize(
    "data",
    [b"", streamed(), streamed()[:-30], PLAIN[0]()[:-1],
     STREAM_HEAD + chunked(b'data: {"a": 1}\n\n') + b"0\r\n\r\n"],
)  # fmt: skip
def test_what_is_cut_off_is_not_whole(data: bytes) -> None:
    reply, _ = answered(data, 1000)
    assert not reply.whole


@pytest.mark.parametrize("reset", [False, True])
def test_it_hangs_up_after_some_events(reset: bool) -> None:
    reply, _ = answered(streamed() + b"0\r\n\r\n", 1, HangUp("reading", 1, reset))
    assert (len(reply.events), reply.whole) == (1, False)
