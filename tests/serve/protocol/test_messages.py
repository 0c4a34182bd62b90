import pytest
from openai.types.chat import ChatCompletionMessage

from bc2.serve.protocol.api_error import ApiError
from bc2.serve.protocol.messages import messages_of

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}


def test_messages_are_those_of_a_layout():
    messages = [{"role": "system", "content": "s"}, USER, ASSISTANT, USER]
    assert messages_of(messages, answered=True) == messages


def test_a_developer_is_the_system():
    (first, _) = messages_of([{"role": "developer", "content": "s"}, USER], answered=True)
    assert first == {"role": "system", "content": "s"}


def test_parts_that_are_text_are_put_together():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    (message,) = messages_of([{"role": "user", "content": parts}], answered=True)
    assert message["content"] == "one two"


def test_an_answer_of_openais_client_comes_back_as_it_is():
    answer = ChatCompletionMessage(role="assistant", content="b").model_dump()
    assert len(answer) > 2
    assert messages_of([USER, answer, USER], answered=True)[1] == ASSISTANT


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ({}, "messages", "invalid_type"),
        ("hi", "messages", "invalid_type"),
        ([], "messages", "invalid_value"),
        (["hi"], "messages[0]", "invalid_type"),
        ([{"content": "a"}], "messages[0].role", "missing_required_parameter"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": None}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "tool", "content": "a"}], "messages[0].role", "invalid_value"),
        ([{"role": ["user"], "content": "a"}], "messages[0].role", "invalid_value"),
        ([{"role": "user", "content": 3}], "messages[0].content", "invalid_type"),
        ([USER, {**USER, "contents": "b"}], "messages[1].contents", "unknown_parameter"),
        ([{**USER, "name": "Li"}], "messages[0].name", "unsupported_parameter"),
        ([{**USER, "train": True}], "messages[0].train", "unknown_parameter"),
        ([USER, {"role": "system", "content": "s"}], "messages", "invalid_value"),
        ([USER, ASSISTANT], "messages[1].role", "invalid_value"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]", "invalid_type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}],
            "messages[0].content[0].x",
            "unknown_parameter",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
            "invalid_type",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(messages, param, code):
    with pytest.raises(ApiError) as caught:
        messages_of(messages, answered=True)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_a_conversation_that_is_only_tokenized_may_end_with_an_answer():
    assert messages_of([USER, ASSISTANT], answered=False) == [USER, ASSISTANT]
