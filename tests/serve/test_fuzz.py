"""Any body at all: an answer or an error object, never a 500, and the server goes on."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import made_checkpoints
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import Server, serving

#: Names of fields, right and wrong, with values that are taken.
FIELDS: dict[str, Any] = {
    "model": "talker", "prompt": "答案 A", "max_tokens": 2, "n": 1, "temperature": 0.5,
    "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 1, "stop": ["x"], "logprobs": 1, "echo": True,
    "stream": True, "stream_options": {"include_usage": True}, "repetition_penalty": 1.1,
    "stop_token_ids": [3], "ignore_eos": True, "return_token_ids": True, "best_of": 1,
    "messages": [{"role": "user", "content": "答案"}], "max_completion_tokens": 2,
    "top_logprobs": 1, "context": "a", "continuation": ["b"], "tokens": [1, 2],
    "add_special_tokens": False,
    "tools": [], "response_format": {"type": "text"}, "frequency_penalty": 0, "user": "u",
}  # fmt: skip
PATHS = {
    "/v1/completions": ("model", "prompt"),
    "/v1/chat/completions": ("model", "messages"),
    "/v1/score": ("model", "context", "continuation"),
    "/tokenize": ("prompt",),
    "/detokenize": ("tokens",),
}
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 700), st.integers(), st.floats(), st.text(max_size=9),
    st.sampled_from(list(FIELDS.values())),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*FIELDS, "role", "content", "type", "text"]), inner,
                        max_size=3),
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]),
                               "content": inner}).map(lambda one: [one]),
    ),
    max_leaves=8,
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path and a body: near to what is right, any JSON, or any bytes."""
    path = draw(st.sampled_from(list(PATHS)))
    if draw(st.integers(0, 9)) == 0:
        return path, draw(st.one_of(st.binary(max_size=40), VALUES.map(dumped)))
    names = draw(st.sets(st.sampled_from(list(FIELDS)), max_size=5)) | set(PATHS[path])
    body = {name: FIELDS[name] for name in names}
    for name in draw(st.sets(st.sampled_from(sorted(body)), max_size=2)):
        body[name] = draw(VALUES)
    data = dumped(body)
    return path, data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 19)) == 0 else data


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    made_checkpoints.register(
        home, "talker", made_checkpoints.drawn(window=64),
        files={"chat.json": b'{"layout": "baichuan"}'},
    )  # fmt: skip
    with serving(home, "talker", time_limit=60) as server:
        yield server


def fuzz(server: Server, examples: int) -> dict[int, int]:
    """How many answers had each status."""
    found: dict[int, int] = {}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    @settings(max_examples=examples, database=None)
    @given(requests())
    def one(request: tuple[str, bytes]) -> None:
        path, body = request
        connection.request("POST", path, body)
        reply = connection.getresponse()
        data = reply.read()
        found[reply.status] = found.get(reply.status, 0) + 1
        assert reply.status in (200, 400, 404, 429), data
        if reply.status != 200:
            assert json.loads(data)["error"]["message"]
        elif reply.headers["content-type"].startswith("text/event-stream"):
            assert data.endswith(b"data: [DONE]\n\n"), data
        else:
            json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    one()
    return found


def check(server: Server, found: dict[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    """Both kinds of answers came, nothing is held, and nothing was complained of."""
    assert found[200] > sum(found.values()) // 20
    assert found[400] > sum(found.values()) // 20
    assert server.metric("bc2_cache_blocks_used") == 0
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert "warning" not in told
    assert server.get("/health").status == 200


def test_any_body_has_an_answer(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    check(server, fuzz(server, 300), capfd)


@pytest.mark.slow
def test_ten_thousand_bodies_have_an_answer(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    check(server, fuzz(server, 10_000), capfd)
