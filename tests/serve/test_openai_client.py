"""OpenAI's own client, sync and async, against a server in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_checkpoints
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from served_process import Served, serve_process

from bc2.tokenizer.tokenizer import Tokenizer

KEY = "sk-made-for-tests"

PROMPT = "答案是 Answer: A"
#: What the model `ender` says to anything.
SAID = "the answer is (A)."
MESSAGES: Any = [{"role": "system", "content": "A"}, {"role": "user", "content": "答案是?"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    made_checkpoints.register(home, "plain", made_checkpoints.drawn(window=256))
    made_checkpoints.register(home, "endless", made_checkpoints.drawn(window=100_000))
    layout = {"chat.json": b'{"layout": "baichuan"}'}
    made_checkpoints.register(
        home, "ender", made_checkpoints.saying(SAID), role="chat", files=layout
    )
    made_checkpoints.register(
        home, "talker", made_checkpoints.drawn(seed=2, window=256), role="chat",
        files=layout | {"generation.json": b'{"temperature": 0.0, "max_new_tokens": 9}'},
    )  # fmt: skip
    return home


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[Served]:
    args = (
        "plain",
        "chatty=talker",
        "ender",
        "--api-key-env",
        "MADE_KEY",
        "--cache-memory",
        "16MB",
    )
    with serve_process(home, *args, MADE_KEY=KEY) as served:
        yield served


@pytest.fixture(scope="module")
def strict(home: Path) -> Iterator[Served]:
    """A server that takes one short request at a time."""
    limits = ("--max-running", 1, "--max-waiting", 0, "--time-limit", 1.5, "--max-body", "2000")
    with serve_process(home, "endless", *limits, "--cache-memory", "64MB") as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with client_of(served) as client:
        yield client


def client_of(served: Served, key: str = KEY, **more: Any) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=60, **more)


def test_models(client: OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["plain", "chatty", "ender"]
    found = client.models.retrieve("chatty")
    assert (found.id, found.object, found.owned_by) == ("chatty", "model", "bc2")


def test_a_completion_and_its_stream(client: OpenAI) -> None:
    asked: Any = {"model": "plain", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**asked)
    (choice,) = whole.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    parts = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(one.text for part in parts for one in part.choices) == choice.text
    assert parts[-1].choices == []
    assert parts[-1].usage is not None
    assert parts[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({part.id for part in parts}) == 1
    assert len(parts) > 3  # it came as it grew


def test_prompts_of_all_forms_and_several_answers(client: OpenAI) -> None:
    tokenizer = Tokenizer.from_bytes(made_checkpoints.tokenizer_bytes())
    ids = tokenizer.encode(PROMPT)
    asked: Any = {"model": "plain", "max_tokens": 6, "temperature": 0}
    forms: list[Any] = [PROMPT, ids, [PROMPT, PROMPT], [ids, ids]]
    texts = [
        [one.text for one in client.completions.create(prompt=form, **asked).choices]
        for form in forms
    ]
    assert texts == [texts[0], texts[0], texts[0] * 2, texts[0] * 2]
    drawn = {**asked, "temperature": 1.3, "n": 3, "max_tokens": 12}
    first, again, other = (
        [one.text for one in client.completions.create(prompt=PROMPT, seed=seed, **drawn).choices]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 3


def test_a_stop_text_ends_an_answer(client: OpenAI) -> None:
    asked: Any = {"model": "ender", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
    (free,) = client.completions.create(**asked).choices
    assert (free.text, free.finish_reason) == (SAID, "stop")  # its end of text
    (ended,) = client.completions.create(**asked, stop=["is (", "never said"]).choices
    assert (ended.text, ended.finish_reason) == ("the answer ", "stop")
    parts = list(client.completions.create(**asked, stop="is (", stream=True))
    assert "".join(part.choices[0].text for part in parts) == ended.text
    assert parts[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_and_echo(client: OpenAI) -> None:
    asked: Any = {"model": "plain", "prompt": PROMPT, "temperature": 0, "logprobs": 3}
    (made,) = client.completions.create(**asked, max_tokens=5, echo=True).choices
    numbers = made.logprobs
    assert numbers is not None
    assert numbers.tokens
    assert numbers.token_logprobs
    assert numbers.top_logprobs
    assert made.text.startswith(PROMPT)
    assert "".join(numbers.tokens).startswith(PROMPT)
    assert numbers.token_logprobs[0] is None
    assert all(number <= 0 for number in numbers.token_logprobs[1:])
    for token, own, top in list(
        zip(numbers.tokens, numbers.token_logprobs, numbers.top_logprobs, strict=True)
    )[-5:]:
        assert top[token] == own == max(top.values())  # greedy
    assert numbers.text_offset is not None
    for at, token in zip(numbers.text_offset, numbers.tokens, strict=True):
        assert made.text[at:].startswith(token) or token.startswith("bytes:")
    # What is echoed alone has the same numbers.
    (echoed,) = client.completions.create(**asked, max_tokens=0, echo=True).choices
    assert echoed.logprobs is not None
    assert echoed.logprobs.token_logprobs is not None
    known = echoed.logprobs.token_logprobs[1:]
    assert numbers.token_logprobs[1 : len(known) + 1] == pytest.approx(known, abs=1e-5)


def test_a_chat_and_its_stream(client: OpenAI) -> None:
    asked: Any = {"model": "chatty", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 9  # the model's own setting
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    said = b"".join(bytes(one.bytes or b"") for one in choice.logprobs.content)
    assert said.decode("utf-8", "replace") == choice.message.content
    assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content)
    parts = list(client.chat.completions.create(**asked, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    deltas = [part.choices[0].delta.content or "" for part in parts]
    assert "".join(deltas) == choice.message.content
    tokens = [one for part in parts if (found := part.choices[0].logprobs) is not None
              for one in found.content or []]  # fmt: skip
    assert tokens == choice.logprobs.content


def test_the_clients_own_way_with_a_stream(client: OpenAI) -> None:
    asked: Any = {"model": "ender", "messages": MESSAGES, "temperature": 0}
    with client.chat.completions.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == SAID
    assert len(deltas) > 1
    assert final.choices[0].finish_reason == "stop"


def test_what_is_bc2s_own(client: OpenAI) -> None:
    own = {"top_k": 1, "repetition_penalty": 1.1, "ignore_eos": True, "return_token_ids": True}
    reply = client.chat.completions.create(
        model="chatty", messages=MESSAGES, n=2, temperature=1, max_completion_tokens=4,
        extra_body=own,
    )  # fmt: skip
    first, second = (choice.model_dump()["token_ids"] for choice in reply.choices)
    assert first == second  # the likeliest alone is left
    assert len(first) == 4


def test_many_async_clients_get_what_one_gets(served: Served, client: OpenAI) -> None:
    prompts = [f"{number} {PROMPT}" for number in range(12)]
    asked: Any = {"model": "plain", "max_tokens": 20, "temperature": 0}
    alone = [client.completions.create(prompt=one, **asked).choices[0].text for one in prompts]

    async def every() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as together:

            async def one(number: int, prompt: str) -> str:
                if number % 2:
                    made = await together.completions.create(prompt=prompt, **asked)
                    return made.choices[0].text
                parts = await together.completions.create(prompt=prompt, stream=True, **asked)
                return "".join([part.choices[0].text async for part in parts])

            return await asyncio.gather(*(one(n, prompt) for n, prompt in enumerate(prompts)))

    assert asyncio.run(every()) == alone


def test_a_stream_that_is_closed_gives_all_back(strict: Served) -> None:
    client = client_of(strict)
    stream = client.completions.create(**endless(), stream=True)
    next(iter(stream))
    assert strict.metric("bc2_cache_blocks_used") > 0
    stream.close()
    strict.wait(lambda: strict.metric("bc2_cache_blocks_used") == 0, 5)


def endless() -> Any:
    return {
        "model": "endless", "prompt": PROMPT, "max_tokens": 90_000,
        "extra_body": {"ignore_eos": True},
    }  # fmt: skip


Call = Callable[[OpenAI], Any]


def completing(**more: Any) -> Call:
    return lambda client: client.completions.create(**{"model": "plain", "prompt": "A", **more})


def chatting(*messages: tuple[str, str], **more: Any) -> Call:
    said: Any = [{"role": role, "content": content} for role, content in messages]
    return lambda client: client.chat.completions.create(
        **{"model": "chatty", "messages": said or MESSAGES, **more}
    )


TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

WRONG: list[tuple[Call, type[openai.APIStatusError], int, str | None, str | None]] = [
    (completing(model="plane"), openai.NotFoundError, 404, "model_not_found", "model"),
    (lambda c: c.models.retrieve("no"), openai.NotFoundError, 404, "model_not_found", "model"),
    (completing(prompt="A " * 400), openai.BadRequestError, 400, "context_length_exceeded",
     "prompt"),
    (completing(prompt=[10_000]), openai.BadRequestError, 400, "invalid_value", "prompt"),
    (completing(prompt=""), openai.BadRequestError, 400, None, "prompt"),
    (completing(temperature=3), openai.BadRequestError, 400, None, "temperature"),
    (completing(n=0), openai.BadRequestError, 400, None, "n"),
    (completing(max_tokens=-1), openai.BadRequestError, 400, None, "max_tokens"),
    (completing(stop=["a"] * 17), openai.BadRequestError, 400, None, "stop"),
    (completing(suffix="end"), openai.BadRequestError, 400, None, "suffix"),
    (completing(logit_bias={"5": 1}), openai.BadRequestError, 400, None, "logit_bias"),
    (completing(frequency_penalty=0.5), openai.BadRequestError, 400, None, "frequency_penalty"),
    (completing(extra_body={"temprature": 1}), openai.BadRequestError, 400, None, "temprature"),
    (completing(extra_body={"stream": "yes"}), openai.BadRequestError, 400, None, "stream"),
    (chatting(model="plain"), openai.BadRequestError, 400, "no_chat_layout", "model"),
    (chatting(("user", "a"), ("assistant", "b")), openai.BadRequestError, 400, None,
     "messages[1].role"),
    (chatting(("user", "a"), ("system", "b"), ("user", "c")), openai.BadRequestError, 400, None,
     "messages"),
    (chatting(("tool", "a")), openai.BadRequestError, 400, None, "messages[0].role"),
    (chatting(("user", "A " * 400)), openai.BadRequestError, 400, "context_length_exceeded",
     "messages"),
    (chatting(tools=[TOOL]), openai.BadRequestError, 400, None, "tools"),
    (chatting(response_format={"type": "json_object"}), openai.BadRequestError, 400, None,
     "response_format"),
    (chatting(top_logprobs=2), openai.BadRequestError, 400, None, "top_logprobs"),
    (lambda c: c.embeddings.create(model="plain", input="a"), openai.NotFoundError, 404,
     "not_found", None),
    (lambda c: c.post("/completions", cast_to=object, content=b'{"model": '),
     openai.BadRequestError, 400, None, None),
    (lambda c: c.get("/completions", cast_to=object), openai.APIStatusError, 405,
     "method_not_allowed", None),
    (completing(extra_headers={"Origin": "https://elsewhere.example"}),
     openai.PermissionDeniedError, 403, "origin_not_allowed", None),
    (lambda c: completing()(c.with_options(api_key="wrong")), openai.AuthenticationError, 401,
     "invalid_api_key", None),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "status", "code", "param"), WRONG)
def test_an_error_is_the_clients_own(
    client: OpenAI, call: Call, kind: type[openai.APIStatusError], status: int, code: str | None,
    param: str | None,
) -> None:  # fmt: skip
    with pytest.raises(kind) as caught:
        call(client)
    error = caught.value
    assert error.status_code == status
    assert error.type == "invalid_request_error"
    assert code is None or error.code == code
    if param is not None:
        assert (error.param or "").startswith(param)
    said: Any = error.body
    assert len(said["message"]) > 20


def test_too_much_too_many_and_too_long(strict: Served) -> None:
    client = client_of(strict)
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model="endless", prompt="A" * 3000)
    assert (large.value.status_code, large.value.code) == (413, "body_too_large")
    stream = client.completions.create(**endless(), stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as many:
        client.completions.create(**endless())
    assert (many.value.status_code, many.value.code) == (429, "rate_limit_exceeded")
    assert many.value.type == "rate_limit_error"
    assert int(many.value.response.headers["retry-after"]) >= 1
    # In a stream that has begun the error is its last event.
    with pytest.raises(openai.APIError, match="time limit") as late:
        list(stream)
    assert late.value.code == "time_limit"
    strict.wait(lambda: strict.metric("bc2_cache_blocks_used") == 0, 5)
    with pytest.raises(openai.InternalServerError) as long:
        client.completions.create(**endless())
    assert (long.value.status_code, long.value.code) == (504, "time_limit")


def test_a_client_that_tries_again_is_served(strict: Served) -> None:
    """Its own way with a 429: it waits as long as it is told."""
    first = client_of(strict).completions.create(**endless(), stream=True)
    next(iter(first))
    patient = client_of(strict).with_options(max_retries=3)
    (made,) = patient.completions.create(model="endless", prompt=PROMPT, max_tokens=2).choices
    assert made.finish_reason == "length"
    first.close()
