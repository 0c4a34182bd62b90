import json
import time
from typing import get_type_hints

import orjson
import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from bc2.serve.protocol.api_error import ApiError
from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeBody,
    ScoreBody,
    TokenizeBody,
)

#: The least that each body asks for.
LEAST = {
    CompletionRequest: {"model": "m", "prompt": "a"},
    ChatRequest: {"model": "m", "messages": [{"role": "user", "content": "a"}]},
    ScoreBody: {"model": "m", "context": "a", "continuation": "b"},
    TokenizeBody: {"prompt": "a"},
    DetokenizeBody: {"tokens": [1]},
}


def asked(cls, **fields):
    return parse(cls, json.dumps({**LEAST[cls], **fields}).encode())


def refused(cls, **fields):
    with pytest.raises(ApiError) as caught:
        asked(cls, **fields)
    assert caught.value.status == 400
    assert caught.value.message
    return caught.value


@pytest.mark.parametrize("cls", LEAST)
def test_null_is_not_there(cls):
    least = parse(cls, json.dumps(LEAST[cls]).encode())
    others = [name for name in (*cls.model_fields, *cls.unsupported) if name not in LEAST[cls]]
    assert asked(cls, **dict.fromkeys(others)) == least


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in LEAST for name in LEAST[cls] if cls != TokenizeBody]
)
@pytest.mark.parametrize("null", [True, False])
def test_what_is_needed_is_named_if_it_is_missing(cls, name, null):
    body = {key: value for key, value in LEAST[cls].items() if key != name}
    with pytest.raises(ApiError) as caught:
        parse(cls, orjson.dumps({**body, name: None} if null else body))
    assert (caught.value.param, caught.value.code) == (name, "missing_required_parameter")


@pytest.mark.parametrize(
    ("cls", "wrong", "right"),
    [
        (CompletionRequest, "max_token", "max_tokens"),
        (ChatRequest, "max_completion_token", "max_completion_tokens"),
        (ScoreBody, "top_logprob", "top_logprobs"),
        (TokenizeBody, "prompts", "prompt"),
        (DetokenizeBody, "token", "tokens"),
    ],
)
def test_a_misspelt_field_names_the_right_one(cls, wrong, right):
    error = refused(cls, **{wrong: None})
    assert (error.param, error.code) == (wrong, "unknown_parameter")
    assert f"did you mean {right!r}?" in error.message


@pytest.mark.parametrize(
    ("cls", "params"), [(CompletionRequest, completion_params), (ChatRequest, chat_params)]
)
def test_every_field_of_openais_is_known(cls, params):
    theirs = {
        *get_type_hints(params.CompletionCreateParamsStreaming),
        *get_type_hints(params.CompletionCreateParamsNonStreaming),
    }
    assert len(theirs) > 15
    assert theirs <= {*cls.model_fields, *cls.unsupported}


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (CompletionRequest, "suffix", "end"),
        (CompletionRequest, "frequency_penalty", 0.5),
        (CompletionRequest, "logit_bias", {"50256": -100}),
        (ChatRequest, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (ChatRequest, "tool_choice", "required"),
        (ChatRequest, "response_format", {"type": "json_object"}),
        (ChatRequest, "presence_penalty", -0.1),
        (ChatRequest, "modalities", ["text", "audio"]),
        (ChatRequest, "store", True),
        (ChatRequest, "reasoning_effort", "high"),
        (ChatRequest, "service_tier", "flex"),
        (ChatRequest, "web_search_options", {"search_context_size": "low"}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(cls, name, value):
    error = refused(cls, **{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert f"`{name}` is not supported" in error.message


@pytest.mark.parametrize("cls", [CompletionRequest, ChatRequest])
def test_what_asks_for_nothing_is_accepted(cls):
    least = asked(cls)
    for name, neutral in cls.unsupported.items():
        for value in (*neutral, None, [], {}, ""):
            assert asked(cls, **{name: value}) == least


@pytest.mark.parametrize(
    ("cls", "fields", "param", "code"),
    [
        (CompletionRequest, {"max_tokens": "1"}, "max_tokens", "invalid_type"),
        (CompletionRequest, {"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        (CompletionRequest, {"max_tokens": True}, "max_tokens", "invalid_type"),
        (CompletionRequest, {"max_tokens": -1}, "max_tokens", "invalid_value"),
        (CompletionRequest, {"max_tokens": 10**30}, "max_tokens", "invalid_value"),
        (CompletionRequest, {"max_tokens": 0}, "max_tokens", "invalid_value"),
        (CompletionRequest, {"model": ""}, "model", "invalid_value"),
        (CompletionRequest, {"model": 3}, "model", "invalid_type"),
        (CompletionRequest, {"n": 0}, "n", "invalid_value"),
        (CompletionRequest, {"n": 129}, "n", "invalid_value"),
        (CompletionRequest, {"best_of": 2}, "best_of", "unsupported_value"),
        (CompletionRequest, {"temperature": 2.1}, "temperature", "invalid_value"),
        (CompletionRequest, {"temperature": "hot"}, "temperature", "invalid_type"),
        (CompletionRequest, {"top_p": 0}, "top_p", "invalid_value"),
        (CompletionRequest, {"top_k": -1}, "top_k", "invalid_value"),
        (CompletionRequest, {"min_p": 1.01}, "min_p", "invalid_value"),
        (CompletionRequest, {"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        (CompletionRequest, {"logprobs": 101}, "logprobs", "invalid_value"),
        (CompletionRequest, {"logprobs": True}, "logprobs", "invalid_type"),
        (CompletionRequest, {"echo": 1}, "echo", "invalid_type"),
        (CompletionRequest, {"seed": -1}, "seed", "invalid_value"),
        (CompletionRequest, {"seed": 1 << 63}, "seed", "invalid_value"),
        (CompletionRequest, {"stop": ["a", 1]}, "stop[1]", "invalid_type"),
        (CompletionRequest, {"stop": ""}, "stop", "invalid_value"),
        (CompletionRequest, {"stop": ["a"] * 17}, "stop", "invalid_value"),
        (CompletionRequest, {"stop": "a" * 1001}, "stop", "invalid_value"),
        (CompletionRequest, {"stop_token_ids": ["a"]}, "stop_token_ids[0]", "invalid_type"),
        (CompletionRequest, {"stop_token_ids": [1, -1]}, "stop_token_ids[1]", "invalid_value"),
        (CompletionRequest, {"stop_token_ids": [1] * 1001}, "stop_token_ids", "invalid_value"),
        (CompletionRequest, {"stream_options": {}}, "stream_options", "invalid_value"),
        (CompletionRequest, {"user": 1}, "user", "invalid_type"),
        (CompletionRequest, {"prompt": ""}, "prompt", "invalid_value"),
        (CompletionRequest, {"prompt": []}, "prompt", "invalid_value"),
        (CompletionRequest, {"prompt": 3}, "prompt", "invalid_type"),
        (CompletionRequest, {"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
        (CompletionRequest, {"prompt": ["a", [1]]}, "prompt", "invalid_value"),
        (CompletionRequest, {"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
        (CompletionRequest, {"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
        (CompletionRequest, {"prompt": [True]}, "prompt[0]", "invalid_type"),
        (CompletionRequest, {"prompt": [1, 1 << 31]}, "prompt[1]", "invalid_value"),
        (CompletionRequest, {"prompt": [[1], [2, -1]]}, "prompt[1][1]", "invalid_value"),
        (CompletionRequest, {"prompt": [[1], []]}, "prompt[1]", "invalid_value"),
        (CompletionRequest, {"prompt": ["a"] * 2049}, "prompt", "invalid_value"),
        (ChatRequest, {"max_tokens": 0}, "max_tokens", "invalid_value"),
        (ChatRequest, {"logprobs": 3}, "logprobs", "invalid_type"),
        (ChatRequest, {"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        (
            ChatRequest,
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_completion_tokens",
            "invalid_value",
        ),
        (ScoreBody, {"context": ["a", "b"]}, "context", "invalid_value"),
        (ScoreBody, {"continuation": ""}, "continuation", "invalid_value"),
        (ScoreBody, {"top_logprobs": -1}, "top_logprobs", "invalid_value"),
        (TokenizeBody, {"prompt": ["a"]}, "prompt", "invalid_type"),
        (TokenizeBody, {"prompt": None}, "prompt", "invalid_value"),
        (TokenizeBody, {"add_generation_prompt": True}, "add_generation_prompt", "invalid_value"),
        (DetokenizeBody, {"tokens": "a"}, "tokens", "invalid_type"),
        (DetokenizeBody, {"tokens": [0.5]}, "tokens[0]", "invalid_type"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(cls, fields, param, code):
    error = refused(cls, **fields)
    assert (error.param, error.code) == (param, code)
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"include_usag": True}, "stream_options.include_usag", "unknown_parameter"),
        ({"include_usage": 1}, "stream_options.include_usage", "invalid_type"),
        ({"include_obfuscation": True}, "stream_options.include_obfuscation",
         "unsupported_parameter"),
        ([1], "stream_options", "invalid_type"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_stream_is_named(options, param, code):
    error = refused(ChatRequest, stream=True, stream_options=options)
    assert (error.param, error.code) == (param, code)


#: Bodies of about `size` bytes that take long, or that took long before they were thought of.
SHAPES = {
    "one list of ids": (CompletionRequest, lambda size: {"prompt": [123456] * (size // 7)}),
    "many lists of ids": (CompletionRequest, lambda size: {"prompt": [[1]] * (size // 4)}),
    "many unknown fields": (CompletionRequest, lambda size: numbered(size)),
    "a long unknown field": (CompletionRequest, lambda size: {"m" * size: 1}),
    "many stop texts": (CompletionRequest, lambda size: {"stop": ["a"] * (size // 4)}),
    "many wrong stop texts": (CompletionRequest, lambda size: {"stop": [1] * (size // 2)}),
    "many options": (
        ChatRequest, lambda size: {"stream": True, "stream_options": numbered(size)},
    ),
    "much metadata": (ChatRequest, lambda size: {"metadata": numbered(size)}),
    "many messages": (
        ChatRequest, lambda size: {"messages": [{"role": "user", "content": ""}] * (size // 29)},
    ),
    "many parts": (ChatRequest, lambda size: {"messages": [parts(size // 25)]}),
    "many tools": (ChatRequest, lambda size: {"tools": [{}] * (size // 3)}),
    "a long role": (
        ChatRequest, lambda size: {"messages": [{"role": "~" * size, "content": ""}]},
    ),
    "many continuations": (ScoreBody, lambda size: {"continuation": ["b"] * (size // 4)}),
    "many tokens": (DetokenizeBody, lambda size: {"tokens": [1] * (size // 2)}),
}  # fmt: skip


def numbered(size):
    return {f"f{i:06}": 1 for i in range(size // 12)}


def parts(count):
    return {"role": "user", "content": [{"type": "text", "text": ""}] * count}


def outcome(cls, body):
    """What a body asks for, or the error object."""
    try:
        return parse(cls, body)
    except ApiError as error:
        return orjson.dumps(error.to_json())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("size", "seconds"), [(1 << 18, None), pytest.param(4 << 20, 5.0, marks=pytest.mark.slow)]
)
def test_a_large_body_takes_bounded_time(name, size, seconds):
    cls, fields = SHAPES[name]
    body = orjson.dumps({**LEAST[cls], **fields(size)})
    assert 0.9 * size < len(body) < 1.1 * size
    begun = time.perf_counter()
    found = outcome(cls, body)
    # A fifth of it on a machine that does nothing else; where others work, time says nothing.
    assert seconds is None or time.perf_counter() - begun < seconds
    assert isinstance(found, cls) or len(found) < 500
