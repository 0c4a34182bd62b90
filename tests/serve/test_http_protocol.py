"""What clients do with their connections beside asking."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import made_checkpoints
import pytest
from running_server import Server, serving

ASKED = json.dumps({"model": "plain", "prompt": "答案", "max_tokens": 2}).encode()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    made_checkpoints.register(home, "plain", made_checkpoints.drawn(window=2048))
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serving(home, "plain") as server:
        yield server


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answered(connection: socket.socket) -> tuple[bytes, bytes]:
    """The first line and the body of an answer after which the server hangs up."""
    found = bytearray()
    while part := connection.recv(1 << 16):
        found += part
    head, _, body = bytes(found).partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], body


@pytest.mark.parametrize("many", [True, False])
def test_headers_without_end_are_refused(server: Server, many: bool) -> None:
    connection = connected(server)
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\na: ")
    part = b"a: b\r\n" * 10_000 if many else b"x" * 60_000
    with pytest.raises(ConnectionError):
        connection.sendall(part * 200)
    assert server.get("/health").status == 200


def test_headers_that_are_too_large_are_told_so(server: Server) -> None:
    connection = connected(server)
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\na: ")
    connection.sendall(b"x" * 70_000)
    status, body = answered(connection)
    assert status == b"HTTP/1.1 431 Request Header Fields Too Large"
    assert json.loads(body)["error"]["code"] == "headers_too_large"


def test_headers_in_small_parts_are_read(server: Server) -> None:
    connection = connected(server)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = b"GET /health HTTP/1.1\r\nconnection: close\r\na: " + b"x" * 1000 + b"\r\n\r\n"
    for at in range(len(head)):
        connection.sendall(head[at : at + 1])
    assert answered(connection)[0] == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("said", [b"\x16\x03\x01\x02\r\n\r\n", b"CONNECT x:80 HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_gets_openais_error(server: Server, said: bytes) -> None:
    connection = connected(server)
    connection.sendall(said)
    status, body = answered(connection)
    assert status == b"HTTP/1.1 400 Bad Request"
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("to", [b"h2c", b"websocket"])
@pytest.mark.parametrize("chunked", [True, False])
def test_who_offers_another_protocol_is_answered_in_this_one(
    server: Server, to: bytes, chunked: bool, parts: int
) -> None:
    size = b"content-length: %d" % len(ASKED)
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\n"
        b"upgrade: %b\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n%b\r\n\r\n"
    ) % (to, b"transfer-encoding: chunked" if chunked else size)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ASKED), ASKED) if chunked else ASKED
    said = head + body + b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n"
    connection = connected(server)
    for part in range(parts):
        connection.sendall(said[part * len(said) // parts : (part + 1) * len(said) // parts])
    status, rest = answered(connection)
    assert status == b"HTTP/1.1 200 OK"
    assert b'"completion_tokens":2' in rest
    assert rest.endswith(b'{"status":"ok"}')


def test_headers_after_a_body_say_nothing(server: Server) -> None:
    connection = connected(server)
    connection.sendall(
        b"POST /tokenize HTTP/1.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        b'e\r\n{"prompt": "a"\r\n'
    )
    connection.sendall(b"1\r\n}\r\n0\r\norigin: http://evil.example\r\n\r\n")
    assert answered(connection)[0] == b"HTTP/1.1 200 OK"


def test_who_reads_nothing_is_hung_up_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bc2.serve.http_protocol.UNREAD_S", 0.3)
    with serving(home, "plain") as server:
        asked = {"model": "plain", "prompt": "答案", "max_tokens": 1500, "ignore_eos": True, "n": 4,
                 "logprobs": 100, "stream": True}  # fmt: skip
        held = server.raw("/v1/completions", asked)
        server.wait(lambda: server.metric("bc2_cancelled_total") == 1, 60)
        server.wait(lambda: server.metric("bc2_cache_blocks_used") == 0, 5)
        held.close()


def test_who_reads_nothing_keeps_no_place_beyond_the_time_limit(home: Path) -> None:
    with serving(home, "plain", time_limit=3, max_waiting=0) as server:
        asked = {"model": "plain", "prompt": "答案", "max_tokens": 1500, "ignore_eos": True,
                 "n": 16, "logprobs": 100, "stream": True}  # fmt: skip
        held = server.raw("/v1/completions", asked)
        server.wait(lambda: server.metric("bc2_cache_blocks_used") > 0)
        server.wait(lambda: server.metric("bc2_cache_blocks_used") == 0, 60)
        server.wait(lambda: server.post("/v1/completions", ASKED).status == 200, 5)
        assert server.metric("bc2_requests_running") == 2  # that one, and what asks
        held.close()
