import orjson
import pytest

from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.requests import ChatRequest, CompletionRequest
from bc2.serve.protocol.sampling import sampling_of

#: As Baichuan's chat models have it.
OWN = {
    "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05,
    "max_new_tokens": 2048,
}  # fmt: skip


def completion(own=None, ends=(2,), room=100, seed=7, **fields):
    asked = parse(CompletionRequest, orjson.dumps({"model": "m", "prompt": "a", **fields}))
    return sampling_of(asked, own or {}, ends, room, seed=seed)


def chat(own=None, ends=(2,), room=100, seed=7, **fields):
    messages = [{"role": "user", "content": "a"}]
    asked = parse(ChatRequest, orjson.dumps({"model": "m", "messages": messages, **fields}))
    return sampling_of(asked, own or {}, ends, room, seed=seed)


@pytest.mark.parametrize("settings", [completion(), chat()])
def test_openais_defaults_come_last(settings):
    assert (settings.temperature, settings.top_p, settings.n) == (1.0, 1.0, 1)
    assert (settings.top_k, settings.min_p, settings.repetition_penalty) == (0, 0.0, 1.0)
    assert settings.stop_ids == (2,)
    assert settings.logprobs is None


@pytest.mark.parametrize("make", [completion, chat])
def test_the_models_own_settings_come_before_them(make):
    settings = make(OWN)
    assert {name: getattr(settings, name) for name in OWN if name != "max_new_tokens"} == {
        name: value for name, value in OWN.items() if name != "max_new_tokens"
    }


@pytest.mark.parametrize("make", [completion, chat])
def test_the_request_comes_first(make):
    given = {
        "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.1, "repetition_penalty": 2.0,
        "n": 3,
    }  # fmt: skip
    settings = make(OWN, **given)
    assert {name: getattr(settings, name) for name in given} == given


@pytest.mark.parametrize(
    ("own", "fields", "room", "most"),
    [
        ({}, {}, 4000, 4000),
        (OWN, {}, 4000, 2048),
        (OWN, {}, 100, 100),
        (OWN, {"max_tokens": 3000}, 4000, 3000),
        ({}, {"max_completion_tokens": 3}, 4000, 3),
        ({}, {"max_tokens": 3000}, 100, 100),
    ],
)
def test_an_answer_of_a_chat_is_as_long_as_asked_or_as_there_is_room(own, fields, room, most):
    assert chat(own, room=room, **fields).max_new_tokens == most


@pytest.mark.parametrize(
    ("fields", "room", "most"), [({}, 4000, 16), ({}, 9, 9), ({"max_tokens": 50}, 4000, 50)]
)
def test_a_completion_is_as_long_as_openais(fields, room, most):
    assert completion(OWN, room=room, **fields).max_new_tokens == most


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({}, (2, 196)),
        ({"stop_token_ids": [5, 2]}, (2, 196, 5)),
        ({"ignore_eos": True}, ()),
        ({"ignore_eos": True, "stop_token_ids": [5]}, (5,)),
    ],
)
def test_the_tokens_that_end_an_answer(fields, ids):
    assert completion(ends=(2, 196), **fields).stop_ids == ids


def test_a_seed_is_the_callers_unless_the_request_has_one():
    assert completion(seed=123).seed == 123
    asked = parse(CompletionRequest, b'{"model": "m", "prompt": "a", "seed": 0}')
    assert sampling_of(asked, {}, (2,), 100, seed=123).seed == 0


def test_stop_texts_and_log_probabilities_are_handed_on():
    assert completion(stop=["a", "b"]).stop == ("a", "b")
    assert completion(logprobs=3).logprobs == 3
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True, top_logprobs=5).logprobs == 5
