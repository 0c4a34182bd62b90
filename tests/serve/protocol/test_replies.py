import time

import orjson
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from bc2.generate.requests import TokenLogProb
from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.pieces import Piece, Usage
from bc2.serve.protocol.replies import DONE, ChatReply, CompletionReply
from bc2.serve.protocol.requests import ChatRequest, CompletionRequest

TEXTS = [b"Hi", b" ", "模".encode()[:2], "模".encode()[2:]]
USAGE = Usage(prompt_tokens=5, completion_tokens=4, cached_tokens=2)
NUMBER = TokenLogProb(-0.5, -0.1, ((1, -0.5), (0, -1.5)))


def completion(**fields):
    asked = parse(CompletionRequest, orjson.dumps({"model": "m", "prompt": "a", **fields}))
    return CompletionReply(
        asked, model="m", id="cmpl-1", created=9, token_text=TEXTS.__getitem__,
        prompt_ids=[[8, 9], [7]],
    )  # fmt: skip


def chat(**fields):
    messages = [{"role": "user", "content": "a"}]
    asked = parse(ChatRequest, orjson.dumps({"model": "m", "messages": messages, **fields}))
    return ChatReply(
        asked, model="m", id="chatcmpl-1", created=9, token_text=TEXTS.__getitem__,
        prompt_ids=[[8, 9]],
    )  # fmt: skip


def pieces(*, echoed=False, log_probs=True):
    """An answer: a prompt that is echoed, then tokens whose text is late."""
    numbers = [NUMBER] if log_probs else None
    prompt = Piece("Hi ", [0, 1], [None, NUMBER] if log_probs else None, echoed=True)
    return [
        *([prompt] if echoed else []),
        Piece("Hi", [0], numbers),
        Piece("", [2], numbers),
        Piece("模", [3], numbers, "stop"),
    ]


def checked(cls, reply, nulls=()):
    """A reply as OpenAI's client has it, read strictly; and no field beside its own.

    Args:
        nulls: what OpenAI's server sends as null and its client's types do not say.
    """
    reply = orjson.loads(orjson.dumps(reply))
    for choice in reply["choices"]:
        for path, value in nulls:
            *way, last = path
            at = choice
            for key in way:
                at = at[key]
            assert at[last] is None
            at[last] = value
    made = cls.model_validate(reply, strict=True)
    assert extras(made) == []
    return made


def extras(made):
    if isinstance(made, list):
        return [extra for one in made for extra in extras(one)]
    if not hasattr(made, "model_extra"):
        return []
    inner = [getattr(made, name) for name in type(made).model_fields]
    return [*(made.model_extra or {}), *extras(inner)]


def test_a_completion_is_openais():
    reply = completion(logprobs=1).whole([pieces(), pieces()], USAGE)
    made = checked(Completion, reply)
    assert [choice.text for choice in made.choices] == ["Hi模", "Hi模"]
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.choices[1].finish_reason == "stop"
    assert made.choices[1].logprobs.tokens == ["Hi", r"bytes:\xe6\xa8", r"bytes:\xa1"]
    assert made.choices[1].logprobs.text_offset == [0, 2, 2]
    assert (made.object, made.id, made.created, made.model) == ("text_completion", "cmpl-1", 9, "m")


def test_usage_is_openais():
    usage = checked(Completion, completion().whole([pieces()], USAGE)).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 4, 9)
    assert usage.prompt_tokens_details.cached_tokens == 2


def test_an_echoed_prompt_begins_the_text_and_the_log_probabilities():
    reply = completion(logprobs=1, echo=True).whole([pieces(echoed=True)], USAGE)
    (choice,) = checked(
        Completion, reply,
        [(("logprobs", "token_logprobs", 0), 0.0), (("logprobs", "top_logprobs", 0), {})],
    ).choices  # fmt: skip
    assert choice.text == "Hi Hi模"
    assert choice.logprobs.token_logprobs[1:] == [-0.5] * 4
    assert [choice.text[at:][:1] for at in choice.logprobs.text_offset] == [
        "H",
        " ",
        "H",
        "模",
        "模",
    ]


def test_a_prompt_alone_is_a_completion():
    prompt = Piece("Hi ", [0, 1], [None, NUMBER], "length", echoed=True)
    reply = completion(echo=True, max_tokens=0, logprobs=0).whole([[prompt]], Usage(2, 0))
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["logprobs"]["top_logprobs"] == [None, {" ": -0.5}]


def test_chunks_of_a_completion_are_openais_and_make_the_whole():
    whole = completion(logprobs=1, echo=True).whole([pieces(echoed=True)], USAGE)
    reply = completion(logprobs=1, echo=True, stream=True)
    chunks = [reply.chunk(0, piece) for piece in pieces(echoed=True)]
    for chunk in chunks[1:-1]:
        checked(Completion, chunk, [(("finish_reason",), "stop")])
    checked(Completion, chunks[-1])
    choices = [chunk["choices"][0] for chunk in chunks]
    (said,) = whole["choices"]
    assert "".join(choice["text"] for choice in choices) == said["text"]
    for name, numbers in said["logprobs"].items():
        assert [one for choice in choices for one in choice["logprobs"][name]] == numbers
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


def test_choices_of_one_stream_have_offsets_of_their_own():
    reply = completion(logprobs=0, n=2, stream=True)
    first, second, more = (reply.chunk(index, pieces()[0]) for index in (0, 1, 0))
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in (first, second, more)]
    assert offsets == [[0], [0], [2]]


def test_a_chat_is_openais():
    reply = chat(logprobs=True, top_logprobs=1).whole([pieces()], USAGE)
    (choice,) = checked(ChatCompletion, reply).choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hi模")
    assert choice.finish_reason == "stop"
    assert [entry.token for entry in choice.logprobs.content] == ["Hi", r"\xe6\xa8", r"\xa1"]
    assert bytes(b for entry in choice.logprobs.content for b in entry.bytes).decode() == "Hi模"
    assert [len(entry.top_logprobs) for entry in choice.logprobs.content] == [1, 1, 1]


@pytest.mark.parametrize("make", [completion, chat])
def test_log_probabilities_that_nobody_asked_for_are_null(make):
    assert make().whole([pieces()], USAGE)["choices"][0]["logprobs"] is None
    assert make().chunk(0, pieces()[0])["choices"][0]["logprobs"] is None


def test_chunks_of_a_chat_are_openais_and_make_the_whole():
    reply = chat(logprobs=True, n=2, stream=True)
    made = [checked(ChatCompletionChunk, reply.chunk(1, piece)) for piece in pieces()]
    choices = [chunk.choices[0] for chunk in made]
    assert [choice.delta.role for choice in choices] == ["assistant", None, None]
    assert "".join(choice.delta.content for choice in choices) == "Hi模"
    assert [choice.index for choice in choices] == [1, 1, 1]
    assert [choice.finish_reason for choice in choices] == [None, None, "stop"]
    assert [choice.logprobs.content[0].token for choice in choices] == ["Hi", r"\xe6\xa8", r"\xa1"]
    other = checked(ChatCompletionChunk, reply.chunk(0, pieces()[0]))
    assert other.choices[0].delta.role == "assistant"


@pytest.mark.parametrize(("make", "cls"), [(completion, Completion), (chat, ChatCompletionChunk)])
def test_usage_is_the_last_chunk_and_null_in_others(make, cls):
    reply = make(stream=True, stream_options={"include_usage": True})
    assert reply.chunk(0, pieces()[0])["usage"] is None
    last = checked(cls, reply.usage_chunk(USAGE))
    assert (last.choices, last.usage.total_tokens) == ([], 9)
    assert "usage" not in make(stream=True).chunk(0, pieces()[0])


def test_token_ids_come_if_they_are_asked_for():
    echoing = completion(return_token_ids=True, echo=True, prompt=["a", "b"], n=2)
    choices = echoing.whole([pieces(echoed=True, log_probs=False)] * 4, USAGE)["choices"]
    assert [choice["prompt_token_ids"] for choice in choices] == [[8, 9], [8, 9], [7], [7]]
    assert [choice["token_ids"] for choice in choices] == [[0, 2, 3]] * 4
    (choice,) = chat(return_token_ids=True).whole([pieces()], USAGE)["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([8, 9], [0, 2, 3])


@pytest.mark.parametrize("make", [completion, chat])
def test_a_stream_says_the_prompts_ids_once_a_choice(make):
    reply = make(return_token_ids=True, n=2, stream=True)
    chunks = [reply.chunk(index, piece) for index in (0, 1) for piece in pieces()]
    said = [chunk["choices"][0].get("prompt_token_ids") for chunk in chunks]
    assert said == [[8, 9], None, None] * 2
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[0], [2], [3]] * 2


@pytest.mark.parametrize("make", [completion, chat])
def test_an_event_is_the_chunk(make):
    sent = make(stream=True).chunk_bytes(0, Piece('line\n\n"模', [1]))
    assert sent.startswith(b"data: {")
    assert sent.endswith(b"}\n\n")
    assert sent.count(b"\n") == 2
    expected = make(stream=True).chunk(0, Piece('line\n\n"模', [1]))
    assert orjson.loads(sent.removeprefix(b"data: ")) == expected
    assert DONE == b"data: [DONE]\n\n"


@pytest.mark.parametrize("make", [completion, chat])
def test_an_event_costs_little(make):
    reply, piece = make(stream=True), Piece("模型", [1])
    best = 1.0
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(100):
            reply.chunk_bytes(0, piece)
        best = min(best, (time.perf_counter() - begun) / 100)
    assert best < 20e-6
