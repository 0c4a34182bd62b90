import orjson
import pytest

from bc2.serve.protocol.parse import parse
from bc2.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeBody,
    ScoreBody,
    TokenizeBody,
)


def completion(**fields):
    return parse(CompletionRequest, orjson.dumps({"model": "m", "prompt": "a", **fields}))


def chat(**fields):
    messages = [{"role": "user", "content": "a"}]
    return parse(ChatRequest, orjson.dumps({"model": "m", "messages": messages, **fields}))


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("hi", ["hi"]),
        (["hi"], ["hi"]),
        (["hi", "ho"], ["hi", "ho"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2]], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompts_are_texts_or_ids_one_or_several(prompt, found):
    assert completion(prompt=prompt).prompt == found


def test_a_completion_has_openais_defaults():
    asked = completion()
    assert (asked.max_tokens, asked.n, asked.stop, asked.echo) == (16, 1, [], False)
    assert asked.top_count is None
    assert not asked.include_usage


def test_what_lm_eval_asks_for_is_understood():
    asked = completion(
        prompt=[[5, 6, 7]], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    assert (asked.prompt, asked.top_count, asked.echo) == ([[5, 6, 7]], 1, True)


def test_a_prompt_alone_can_be_scored():
    assert completion(max_tokens=0, echo=True, logprobs=0).max_tokens == 0


@pytest.mark.parametrize(("n", "best_of"), [(1, 1), (3, 3), (3, 1)])
def test_best_of_may_ask_for_nothing(n, best_of):
    assert completion(n=n, best_of=best_of).n == n


@pytest.mark.parametrize(("stop", "found"), [("x", ["x"]), (["x", "y"], ["x", "y"]), ([], [])])
def test_stop_is_a_text_or_several(stop, found):
    assert chat(stop=stop).stop == found


@pytest.mark.parametrize(
    ("fields", "count"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": False, "top_logprobs": 0}, None),
     ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 4}, 4)],
)  # fmt: skip
def test_alternatives_of_a_chat(fields, count):
    assert chat(**fields).top_count == count


@pytest.mark.parametrize(
    ("fields", "most"),
    [({}, None), ({"max_tokens": 3}, 3), ({"max_completion_tokens": 4}, 4),
     ({"max_tokens": 5, "max_completion_tokens": 5}, 5)],
)  # fmt: skip
def test_the_length_of_an_answer_has_two_names(fields, most):
    assert chat(**fields).answer_tokens == most


def test_usage_comes_if_the_stream_is_asked_for_it():
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert not chat(stream=True, stream_options={"include_obfuscation": False}).include_usage


def test_fields_without_effect_are_taken():
    asked = chat(user="u", metadata={"a": "b"}, prompt_cache_key="k", safety_identifier="s")
    assert asked.metadata == {"a": "b"}


@pytest.mark.parametrize(
    ("context", "continuation", "pairs"),
    [
        ("a", "b", [("a", "b")]),
        ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a", "d"], ["b", "c"], [("a", "b"), ("d", "c")]),
        ([1], [[2], [3]], [([1], [2]), ([1], [3])]),
        ("a", [2, 3], [("a", [2, 3])]),
    ],
)
def test_each_continuation_has_its_context(context, continuation, pairs):
    body = {"model": "m", "context": context, "continuation": continuation}
    assert parse(ScoreBody, orjson.dumps(body)).pairs == pairs


def test_a_tokenizer_is_asked_for_a_text_or_a_conversation():
    # As lm-eval sends it.
    asked = parse(TokenizeBody, b'{"prompt": "test", "add_special_tokens": false}')
    assert (asked.prompt, asked.messages, asked.add_special_tokens) == ("test", None, False)
    messages = b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    body = b'{"messages": %b, "add_generation_prompt": false}' % messages
    asked = parse(TokenizeBody, body)
    assert [message["content"] for message in asked.messages] == ["a", "b"]
    assert parse(TokenizeBody, b'{"prompt": ""}').prompt == ""


def test_no_tokens_are_no_text():
    assert parse(DetokenizeBody, b'{"tokens": []}').tokens == []
