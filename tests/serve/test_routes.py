"""What the routes answer, over HTTP, held against the engine itself."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
from running_server import Server, serving

from bc2.generate.requests import Request, ScoreRequest
from bc2.generate.sampling_config import SamplingConfig
from bc2.serve.served_models import SpeakingModel


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    made_checkpoints.register(home, "plain", made_checkpoints.drawn(window=128))
    made_checkpoints.register(
        home, "talker", made_checkpoints.drawn(seed=2, window=128), role="chat",
        files={
            "chat.json": b'{"layout": "baichuan"}',
            "generation.json": b'{"temperature":0.0,"max_new_tokens":7}',
        },
    )  # fmt: skip
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with serving(home, "plain", "chatty=talker") as server:
        yield server


def alone(model: SpeakingModel, ids: list[int], **settings: Any) -> Any:
    """What the engine itself answers, without a server."""
    from bc2.generate.engine import InferenceEngine

    engine = InferenceEngine(
        model.lane.engine.runner.model, model.lane.engine.config, eos_id=model.tokenizer.eos_id,
        decode_bytes=model.text_bytes,
    )  # fmt: skip
    (answer,) = engine.generate([Request(ids, SamplingConfig(stop_ids=model.ends, **settings))])
    return answer.continuations


def test_a_completion_is_what_the_engine_says(server: Server) -> None:
    model = server.models.by_name["plain"]
    prompts = ["答案是 A", "Answer: B 12"]
    asked = {"model": "plain", "prompt": prompts, "max_tokens": 9, "temperature": 0,
             "return_token_ids": True}  # fmt: skip
    reply = server.post("/v1/completions", asked).json
    assert [one["index"] for one in reply["choices"]] == [0, 1]
    for prompt, choice in zip(prompts, reply["choices"], strict=True):
        ids = model.tokenizer.encode_whole(prompt)
        (made,) = alone(model, ids, max_new_tokens=9, temperature=0)
        assert (choice["prompt_token_ids"], choice["token_ids"]) == (ids, made.ids)
        assert choice["text"] == made.data.decode("utf-8", "replace")
    assert reply["usage"]["completion_tokens"] == sum(
        len(one["token_ids"]) for one in reply["choices"]
    )
    by_ids = {**asked, "prompt": [one["prompt_token_ids"] for one in reply["choices"]]}
    again = server.post("/v1/completions", by_ids).json
    assert again["choices"] == reply["choices"]


def test_drawn_answers_follow_from_the_seed(server: Server) -> None:
    model = server.models.by_name["plain"]
    asked = {"model": "plain", "prompt": "答案", "n": 3, "seed": 11, "max_tokens": 6, "logprobs": 2,
             "return_token_ids": True}  # fmt: skip
    reply = server.post("/v1/completions", asked).json["choices"]
    ids = model.tokenizer.encode_whole("答案")
    made = alone(model, ids, n=3, seed=11, max_new_tokens=6, temperature=1.0, logprobs=2)
    assert [one["token_ids"] for one in reply] == [one.ids for one in made]
    for choice, one in zip(reply, made, strict=True):
        assert choice["logprobs"]["token_logprobs"] == [number.raw for number in one.log_probs]
    free = {**asked, "seed": None, "max_tokens": 20}
    twice = [server.post("/v1/completions", free).json["choices"][0]["token_ids"] for _ in "ab"]
    assert twice[0] != twice[1]


def test_each_of_equal_prompts_has_an_answer_of_its_own(server: Server) -> None:
    asked = {"model": "plain", "prompt": ["答案"] * 4, "max_tokens": 20, "ignore_eos": True}
    drawn = [one["text"] for one in server.post("/v1/completions", asked).json["choices"]]
    assert len(set(drawn)) == 4
    seeded = server.post("/v1/completions", {**asked, "seed": 11}).json["choices"]
    assert len({one["text"] for one in seeded}) == 1  # that of each of them alone


def test_an_echoed_prompt_has_the_scorers_numbers(server: Server) -> None:
    model = server.models.by_name["plain"]
    texts = ["答案是 Answer: A", "答案是 Answer: B", "#### 7"]
    asked = {"model": "plain", "prompt": texts, "max_tokens": 0, "echo": True, "logprobs": 1,
             "return_token_ids": True}  # fmt: skip
    choices = server.post("/v1/completions", asked).json["choices"]
    ids = [model.tokenizer.encode_whole(text) for text in texts]
    wanted = list(model.lane.engine.score([ScoreRequest(one[:1], one[1:]) for one in ids], top_k=1))
    for text, one, choice, score in zip(texts, ids, choices, wanted, strict=True):
        numbers = choice["logprobs"]
        assert choice["text"] == text
        assert numbers["token_logprobs"][0] is None
        assert numbers["token_logprobs"][1:] == pytest.approx(score.log_probs, abs=1e-5)
        assert len(numbers["tokens"]) == len(one)
        for place, greedy in enumerate(score.greedy, 1):
            top, own = numbers["top_logprobs"][place], numbers["token_logprobs"][place]
            assert (own == max(top.values())) == greedy
    more = server.post("/v1/completions", {**asked, "max_tokens": 2, "temperature": 0}).json
    for before, after, one in zip(choices, more["choices"], ids, strict=True):
        assert after["logprobs"]["token_logprobs"][: len(one)] == pytest.approx(
            before["logprobs"]["token_logprobs"], abs=1e-5
        )
        assert len(after["logprobs"]["tokens"]) == len(one) + len(after["token_ids"])


@pytest.mark.parametrize("more", [{}, {"logprobs": 1}, {"echo": True, "logprobs": 0}, {"n": 2}])
def test_a_stream_says_what_the_whole_reply_says(server: Server, more: dict[str, Any]) -> None:
    asked = {"model": "plain", "prompt": ["答案是 A", "def"], "max_tokens": 8, "seed": 5,
             "return_token_ids": True, "stop": ["answer"], **more}  # fmt: skip
    whole = server.post("/v1/completions", asked).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage = server.post("/v1/completions", {**asked, **options}).events
    assert usage["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage["usage"][name] == whole["usage"][name]
    for choice in whole["choices"]:
        own = [one["choices"][0] for one in chunks if one["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert [i for one in own for i in one["token_ids"]] == choice["token_ids"]
        assert [one["finish_reason"] for one in own if one["finish_reason"]] == [
            choice["finish_reason"]
        ]
        if choice["logprobs"] is not None:
            said = [n for one in own for n in one["logprobs"]["token_logprobs"]]
            assert said == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-5)
            places = [n for one in own for n in one["logprobs"]["text_offset"]]
            assert places == choice["logprobs"]["text_offset"]


def test_a_choice_ends_as_soon_as_it_does(server: Server) -> None:
    """And not with the last of them."""
    asked = {"model": "plain", "prompt": "答案", "n": 12, "seed": 3, "max_tokens": 60,
             "temperature": 2, "stop": ["a", "e", "i", "1"], "return_token_ids": True,
             "stream": True}  # fmt: skip
    chunks = [one["choices"][0] for one in server.post("/v1/completions", asked).events]
    ends = [at for at, one in enumerate(chunks) if one["finish_reason"]]
    assert sorted(chunks[at]["index"] for at in ends) == list(range(12))
    for at in ends:
        index = chunks[at]["index"]
        assert all(one["index"] != index for one in chunks[at + 1 :])
    assert any(one["token_ids"] for one in chunks[ends[0] :])


def test_a_chat_has_the_models_own_settings_and_layout(server: Server) -> None:
    model = server.models.by_name["chatty"]
    messages = [{"role": "system", "content": "A"}, {"role": "user", "content": "答案是?"}]
    asked = {"model": "chatty", "messages": messages, "logprobs": True, "top_logprobs": 2,
             "return_token_ids": True}  # fmt: skip
    reply = server.post("/v1/chat/completions", asked).json
    (choice,) = reply["choices"]
    assert model.chat is not None
    ids = model.chat.prompt(messages)
    (made,) = alone(model, ids, max_new_tokens=7, temperature=0, logprobs=2)
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (ids, made.ids)
    assert choice["message"]["content"] == made.data.decode("utf-8", "replace")
    assert [one["logprob"] for one in choice["logprobs"]["content"]] == [
        number.raw for number in made.log_probs
    ]
    chunks = server.post("/v1/chat/completions", {**asked, "stream": True}).events
    parts = [one["choices"][0] for one in chunks]
    assert "".join(one["delta"]["content"] for one in parts) == choice["message"]["content"]
    assert parts[0]["delta"]["role"] == "assistant"
    assert parts[-1]["finish_reason"] == choice["finish_reason"] == "length"


def test_scores_are_those_of_the_engine(server: Server) -> None:
    model = server.models.by_name["plain"]
    asked = {"model": "plain", "context": "答案是", "continuation": [" A", " B 7"],
             "top_logprobs": 1}  # fmt: skip
    rows = server.post("/v1/score", asked).json["data"]
    context = model.tokenizer.encode_whole("答案是")
    requests = [ScoreRequest(context, model.tokenizer.encode(text)) for text in (" A", " B 7")]
    for row, score in zip(rows, model.lane.engine.score(requests), strict=True):
        assert row["score"] == pytest.approx(score.total, abs=1e-5)
        assert row["is_greedy"] == score.all_greedy
        assert [one["logprob"] for one in row["tokens"]] == pytest.approx(score.log_probs, abs=1e-5)


def test_tokens_go_there_and_back(server: Server) -> None:
    model = server.models.by_name["plain"]
    text = "答案是 Answer: 7\n🙂"
    asked = {"prompt": text, "add_special_tokens": False, "return_token_strs": True}
    found = server.post("/tokenize", asked).json
    assert found["tokens"] == model.tokenizer.encode(text)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json == {"prompt": text}
    info = server.get("/tokenizer_info").json
    assert server.post("/tokenize", {"prompt": info["eos_token"]}).json["tokens"] == [
        model.tokenizer.eos_id
    ]
    inside = server.post("/tokenize", {"prompt": f"a {info['eos_token']}"}).json["tokens"]
    assert model.tokenizer.eos_id not in inside
    chat = {"model": "chatty", "messages": [{"role": "user", "content": "答案"}]}
    other = server.models.by_name["chatty"].chat
    assert other is not None
    assert server.post("/tokenize", chat).json["tokens"] == other.prompt(chat["messages"])


def test_ids_that_are_no_text_are_told_as_such(server: Server) -> None:
    tokenizer = server.models.by_name["plain"].tokenizer
    ids = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in (0xED, 0xA0, 0x80, 0xE4)]
    text = server.post("/detokenize", {"tokens": ids}).json["prompt"]
    assert set(text) == {"\ufffd"}
    asked = {"model": "plain", "prompt": ids, "echo": True, "max_tokens": 0, "logprobs": 0}
    (choice,) = server.post("/v1/completions", asked).json["choices"]
    assert choice["text"] == text
    assert choice["logprobs"]["tokens"] == [
        f"bytes:\\x{byte:02x}" for byte in (0xED, 0xA0, 0x80, 0xE4)
    ]


def test_models_are_listed_with_what_they_are(server: Server) -> None:
    found = server.get("/v1/models").json["data"]
    assert [(one["id"], one["chat"], one["max_model_len"]) for one in found] == [
        ("plain", False, 128), ("chatty", True, 128),
    ]  # fmt: skip
    assert found[1]["sampling"] == {"temperature": 0.0, "max_new_tokens": 7}
    assert server.get("/v1/models/chatty").json == found[1]
    assert server.get("/v1/models/other").error["code"] == "model_not_found"
    assert server.get("/health").json == {"status": "ok"}


WRONG = [
    ("/v1/completions", b"{", 400, None),
    ("/v1/completions", b"\xff", 400, None),
    ("/v1/completions", {"model": "plain", "prompt": "a", "tools": []}, 400, "tools"),
    ("/v1/completions", {"model": "plain", "prompt": "a", "suffix": "b"}, 400, "suffix"),
    ("/v1/completions", {"model": "plain", "prompt": "A " * 300}, 400, "prompt"),
    ("/v1/completions", {"model": "plain", "prompt": "A " * 300_000}, 400, "prompt"),
    ("/v1/completions", {"model": "plain", "prompt": [640]}, 400, "prompt"),
    ("/v1/completions", {"model": "plain", "prompt": ["a"] * 600}, 400, "prompt"),
    ("/v1/completions", {"model": "other", "prompt": "a"}, 404, "model"),
    ("/v1/completions", {"prompt": "a"}, 400, "model"),
    ("/v1/chat/completions", {"model": "plain", "messages": [{"role": "user", "content": "a"}]},
     400, "model"),
    ("/v1/chat/completions", {"model": "chatty", "messages": [{"role": "user", "content": "a"},
     {"role": "assistant", "content": "b"}]}, 400, "messages[1].role"),
    ("/v1/chat/completions", {"model": "chatty", "messages": [{"role": "user", "content": "a"},
     {"role": "system", "content": "b"}]}, 400, "messages"),
    ("/v1/chat/completions", {"model": "chatty", "messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"model": "chatty", "messages": [
     {"role": "user", "content": "A " * 90_000}]}, 400, None),
    ("/v1/score", {"model": "plain", "context": "A " * 40, "continuation": "B " * 200}, 400,
     "continuation[0]"),
    ("/detokenize", {"tokens": [99_999]}, 400, "tokens"),
    ("/v1/completions", {"model": "plain", "prompt": "a", "stop_token_ids": [640]}, 400,
     "stop_token_ids"),
    ("/v1/chat/completions", {"model": "chatty", "messages": [{"role": "user", "content": "a"}],
     "stop_token_ids": [640]}, 400, "stop_token_ids"),
    ("/tokenize", {"messages": [{"role": "user", "content": "a"}]}, 400, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "param"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong(
    server: Server, path: str, body: Any, status: int, param: str | None
) -> None:
    for stream in (False, True):
        more = {"stream": True} if stream and path.startswith("/v1/c") else {}
        reply = server.post(path, {**body, **more} if isinstance(body, dict) else body)
        assert reply.status == status
        if param is not None:
            assert (reply.error["param"] or "").startswith(param)
        assert reply.error["type"] == "invalid_request_error"


def test_a_compressed_body_is_said_to_be_one(server: Server) -> None:
    headers = {"Content-Encoding": "gzip"}
    reply = server.ask("POST", "/v1/completions", gzip.compress(b"{}"), headers)
    assert (reply.status, reply.error["code"]) == (415, "unsupported_encoding")
    plain = {"Content-Encoding": "identity"}
    body = {"model": "plain", "prompt": "a", "max_tokens": 1}
    assert server.ask("POST", "/v1/completions", body, plain).status == 200


def test_other_paths_and_methods_are_openais_errors_too(server: Server) -> None:
    assert server.get("/v1/nothing").status == 404
    assert server.get("/v1/nothing").error["code"] == "not_found"
    reply = server.get("/v1/completions")
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    redirected = server.post("/v1/completions/", {"model": "plain", "prompt": "答"})
    assert (redirected.status, redirected.error["code"]) == (404, "not_found")
