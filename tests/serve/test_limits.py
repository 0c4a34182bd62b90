"""What a server does under load, with slow or vanishing clients, strangers, and signals."""

from __future__ import annotations

import errno
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
from running_server import Server, serving

from bc2.errors import UsageError
from bc2.generate.engine_config import EngineConfig
from bc2.serve.server import bound_socket, url_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    made_checkpoints.register(home, "plain", made_checkpoints.drawn(window=100_000))
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serving(home, "plain") as server:
        yield server


def long(tokens: int = 20_000, **more: Any) -> dict[str, Any]:
    """A request that runs for longer than a test."""
    return {"model": "plain", "prompt": "答案", "max_tokens": tokens, "ignore_eos": True, **more}


def hang_up(connection: socket.socket) -> None:
    """Reset a connection, as a process does that is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/completions", {}),
        ("/v1/completions", {"stream": True}),
        ("/v1/completions", {"n": 30, "stream": True}),  # more than run at once
        ("/v1/completions", {"echo": True, "logprobs": 1}),
    ],
)
@pytest.mark.parametrize("kindly", [True, False])
def test_who_hangs_up_frees_the_memory(
    server: Server, path: str, more: dict[str, Any], kindly: bool
) -> None:
    connection = server.raw(path, long(**more))
    server.wait(lambda: server.metric("bc2_cache_blocks_used") > 0)
    gone = server.metric("bc2_cancelled_total")
    if kindly:
        connection.close()
    else:
        hang_up(connection)
    server.wait(lambda: server.metric("bc2_cancelled_total") == gone + 1, 5)
    # A step after it is told at most, which is a few milliseconds here.
    server.wait(lambda: server.metric("bc2_cache_blocks_used") == 0, 1)
    assert server.metric("bc2_requests_waiting") == 0
    assert server.post("/v1/completions", long(2)).status == 200


def test_who_hangs_up_after_another_request_frees_the_memory(server: Server) -> None:
    connection = server.raw("/v1/completions", long())
    server.wait(lambda: server.metric("bc2_cache_blocks_used") > 0)
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    time.sleep(0.1)
    hang_up(connection)
    server.wait(lambda: server.metric("bc2_cache_blocks_used") == 0, 3)


def test_who_hangs_up_while_texts_are_scored_frees_the_memory(server: Server) -> None:
    texts = [f"{number} " * 2000 for number in range(200)]
    body = {"model": "plain", "context": "答案", "continuation": texts}
    connection = server.raw("/v1/score", body)
    server.wait(lambda: server.running._service.thread.tickets > 0)
    hang_up(connection)
    server.wait(lambda: server.running._service.thread.tickets == 0, 5)
    before = server.metric("bc2_prompt_tokens_total")
    time.sleep(0.3)
    assert server.metric("bc2_prompt_tokens_total") - before < 2000  # a pass at most


def test_a_stream_that_nobody_reads_is_no_burden(server: Server) -> None:
    connection = server.raw("/v1/completions", long(30_000, stream=True, logprobs=100))
    server.wait(lambda: server.metric("bc2_cache_blocks_used") > 0)
    read = server.metric("bc2_new_tokens_total")
    server.wait(lambda: server.metric("bc2_new_tokens_total") > read + 300)
    assert server.post("/v1/completions", long(2)).status == 200
    hang_up(connection)
    server.wait(lambda: server.metric("bc2_cache_blocks_used") == 0, 5)


def test_too_many_are_told_when_to_come_again(home: Path) -> None:
    engine = EngineConfig(cache_bytes=64 << 20, max_running=2)
    with serving(home, "plain", engine=engine, max_waiting=1) as server:
        held = [server.raw("/v1/completions", long()) for _ in range(3)]
        server.wait(lambda: server.running._service.thread.tickets == 3)
        reply = server.post("/v1/completions", long(1))
        assert (reply.status, reply.error["type"]) == (429, "rate_limit_error")
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        never = server.post("/v1/completions", long(1, n=4))
        assert (never.status, never.error["param"]) == (400, "prompt")
        for connection in held:
            connection.close()
        server.wait(lambda: server.post("/v1/completions", long(1)).status == 200)


def test_a_request_has_a_time_limit(home: Path) -> None:
    with serving(home, "plain", time_limit=0.3) as server:
        reply = server.post("/v1/completions", long())
        assert (reply.status, reply.error["code"]) == (504, "time_limit")
        streamed = server.post("/v1/completions", long(stream=True))
        assert streamed.status == 200
        *_, last = streamed.body.decode().strip().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "time_limit"
        server.wait(lambda: server.metric("bc2_cache_blocks_used") == 0, 5)
        assert server.post("/v1/completions", long(2)).status == 200


def test_a_body_is_bounded_in_size_and_time(home: Path) -> None:
    with serving(home, "plain", max_body=1000, body_seconds=0.3) as server:
        reply = server.post("/v1/completions", b"x" * 5000)
        assert (reply.status, reply.error["code"]) == (413, "body_too_large")
        chunked = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        chunked.sendall(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        chunked.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert chunked.recv(10_000).startswith(b"HTTP/1.1 413 ")
        polite = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        polite.sendall(
            b"POST /tokenize HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2000\r\n\r\n"
        )
        assert polite.recv(10_000).startswith(b"HTTP/1.1 413 ")
        slow = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        answer = slow.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        assert server.post("/v1/completions", long(1)).status == 200


def test_who_sends_much_too_much_is_told_so(home: Path) -> None:
    with serving(home, "plain", max_body=1 << 20) as server:
        for _ in range(5):  # whoever is still sending as the connection is closed sees no answer
            reply = server.post("/v1/completions", b"x" * (10 << 20))
            assert (reply.status, reply.error["code"]) == (413, "body_too_large")
        endless = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        endless.sendall(b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            endless.sendall((b"100000\r\n" + b"x" * (1 << 20) + b"\r\n") * 40)


def test_log_probabilities_are_bounded(server: Server) -> None:
    echo = {"model": "plain", "prompt": [[5] * 3000] * 16, "max_tokens": 0, "echo": True}
    new = {"model": "plain", "prompt": "答案", "n": 16, "max_tokens": 3000}
    for asked in (echo, new):
        reply = server.post("/v1/completions", {**asked, "logprobs": 100})
        assert (reply.status, reply.error["param"]) == (400, "logprobs")
    texts = {"model": "plain", "context": "答案", "continuation": [[5] * 3000] * 16}
    reply = server.post("/v1/score", {**texts, "top_logprobs": 100})
    assert (reply.status, reply.error["param"]) == (400, "top_logprobs")


def test_slow_headers_are_not_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bc2.serve.http_protocol.HEADER_S", 0.2)
    with serving(home, "plain") as server:
        slow = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost")
        assert slow.recv(100) == b""
        running = server.raw("/v1/completions", long(300))  # longer than headers may take
        assert running.recv(100).startswith(b"HTTP/1.1 200")


def test_a_key_is_asked_for_and_never_told(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = {"api_keys": ("sesame", "other"), "log_requests": True, "log_prompts": True}
    with serving(home, "plain", **config) as server:
        for given in (None, "Bearer wrong", "Basic sesame", "sesame", "Bearer "):
            headers = {} if given is None else {"Authorization": given}
            for reply in (server.get("/v1/models", **headers),
                          server.post("/v1/completions", long(1), **headers)):  # fmt: skip
                assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
                assert reply.headers["www-authenticate"] == "Bearer"
        assert server.get("/health").status == 200
        for key in ("sesame", "other"):
            reply = server.post("/v1/completions", long(1), Authorization=f"Bearer {key}")
            assert reply.status == 200
    told = capfd.readouterr()
    assert "POST /v1/completions 200" in told.err
    assert "答案" in told.err
    assert "sesame" not in told.out + told.err


@pytest.mark.parametrize("log", [{}, {"log_requests": True}])
def test_what_is_said_is_not_logged_unless_asked(
    home: Path, capfd: pytest.CaptureFixture[str], log: dict[str, bool]
) -> None:
    with serving(home, "plain", **log) as server:
        server.post("/v1/completions", long(1, prompt="secret words"))
        server.post("/v1/completions", {"model": "plain", "prompt": ["secret", 1]})
        server.post("/v1/completions", b'{"secret": ')
        server.ask("GET", "/v1/models?key=secret")
    told = capfd.readouterr()
    assert "secret" not in told.out + told.err
    assert ("POST /v1/completions 200" in told.err) == bool(log)


def test_other_origins_are_refused_unless_named(home: Path) -> None:
    own = "http://localhost:3000"
    with serving(home, "plain", origins=(own,)) as server:
        for path in ("/health", "/v1/models"):
            assert server.get(path, Origin="http://evil.example").status == 403
            assert server.get(path, Origin="null").status == 403
        reply = server.get("/v1/models", Origin=own)
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, own)
        asks = {"Origin": own, "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        assert server.ask("OPTIONS", "/v1/completions", None, asks).status == 200
        asks["Origin"] = "http://evil.example"
        assert server.ask("OPTIONS", "/v1/completions", None, asks).status == 400
        refused = server.post("/v1/completions", long(1), Origin="http://evil.example")
        assert refused.error["code"] == "origin_not_allowed"


def test_a_signal_lets_what_runs_end(home: Path) -> None:
    with serving(home, "plain") as server:
        whole, stream = (
            server.raw("/v1/completions", long(600, stream=stream)) for stream in (False, True)
        )
        idle = socket.create_connection(("127.0.0.1", server.port))
        server.wait(lambda: server.running._service.thread.tickets == 2)
        server.running.stop(15)
        server.wait(lambda: server.running._service.draining)
        answers = [_all(connection) for connection in (whole, stream)]
        assert idle.recv(1) == b""
    assert json.loads(answers[0].partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 600
    assert b"data: [DONE]" in answers[1]
    assert server.running.broken == 0
    with pytest.raises(ConnectionRefusedError):
        server.get("/health")


def test_a_signal_ends_the_rest_when_the_grace_is_over(home: Path) -> None:
    begin = time.monotonic()
    with serving(home, "plain", grace=0.5) as server:
        whole, stream = (
            server.raw("/v1/completions", long(30_000, stream=stream)) for stream in (False, True)
        )
        server.wait(lambda: server.running._service.thread.tickets == 2)
        server.running.stop(15)
        answers = [_all(connection) for connection in (whole, stream)]
    assert time.monotonic() - begin < 15
    assert answers[0].startswith(b"HTTP/1.1 503")
    assert b"shutting_down" in answers[0]
    assert b"shutting_down" in answers[1]
    assert b"[DONE]" not in answers[1]
    assert server.running.broken == 2


def test_what_comes_after_the_grace_is_refused(home: Path) -> None:
    data = json.dumps(long()).encode()
    with serving(home, "plain", grace=0.2) as server:
        late = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        head = f"POST /v1/completions HTTP/1.1\r\ncontent-length: {len(data)}\r\n\r\n"
        late.sendall(head.encode() + data[:10])
        server.wait(lambda: server.metric("bc2_requests_running") == 2)
        server.running.stop(15)
        server.wait(lambda: server.running.broken == 1)
        late.sendall(data[10:])
        answer = _all(late)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"shutting_down" in answer


def test_a_request_that_never_comes_is_broken_off(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bc2.serve.server._LEAVE_S", 1)
    with serving(home, "plain", grace=0.2) as server:
        never = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        never.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: 100\r\n\r\n{")
        server.wait(lambda: server.metric("bc2_requests_running") == 2)
        server.running.stop(15)
        answer = _all(never)
    assert answer.startswith(b"HTTP/1.1 503")
    assert server.running.broken == 1


def test_a_system_without_connections_is_told_of_once(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(home, "plain") as server:
        accept = socket.socket.accept
        until = time.monotonic() + 0.5

        def none_left(own: socket.socket) -> Any:
            if time.monotonic() < until:
                raise OSError(errno.EMFILE, "Too many open files")
            return accept(own)

        monkeypatch.setattr(socket.socket, "accept", none_left)
        assert server.get("/health").status == 200
    told = capfd.readouterr().err
    assert told.count("no connection can be taken: too many open files") == 1
    assert "Traceback" not in told


def _all(connection: socket.socket) -> bytes:
    found = bytearray()
    while part := connection.recv(1 << 16):
        found += part
    return bytes(found)


def test_a_failing_pass_fails_its_requests_and_no_later_ones(
    server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = server.models.by_name["plain"].lane.engine.runner
    broken = threading.Event()
    step = runner.next_logits

    def once(*args: Any) -> Any:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("secret words of a prompt")
        return step(*args)

    monkeypatch.setattr(runner, "next_logits", once)
    reply = server.post("/v1/completions", long(1))
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    told = capfd.readouterr().err
    assert "RuntimeError at" in told
    assert "secret" not in told
    assert server.post("/v1/completions", long(1)).status == 200
    assert server.get("/health").status == 200


def test_a_port_that_is_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match="in use"):
            bound_socket("127.0.0.1", port)
    with bound_socket("127.0.0.1", port) as bound:
        assert url_of(bound) == f"http://127.0.0.1:{port}"
    with pytest.raises(UsageError, match=r"no address|cannot be taken"):
        bound_socket("192.0.2.1", 0)
    with pytest.raises(UsageError, match="no address"):
        bound_socket("no.such.host.invalid", 0)
