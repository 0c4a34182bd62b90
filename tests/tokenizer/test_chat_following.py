"""Turns that are appended to answers as they were sampled."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from made_chats import (
    CHATML_TEMPLATE,
    LLAMA31_TEMPLATE,
    MISTRAL_TEMPLATE,
    QWEN2_TEMPLATE,
    conversation,
)
from made_json_tokenizers import QWEN_SPECIAL, llama2_like, llama3_like, qwen_like

from bc2.errors import DataError
from bc2.tokenizer.chat import Chat, Message
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.chat_template import TemplateChat
from bc2.tokenizer.layout import ASSISTANT_ID, USER_ID
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.train import Trained

MAKERS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "chatml": (qwen_like, None),
    "llama3": (llama3_like, None),
    "imported chatml": (qwen_like, CHATML_TEMPLATE),
    "qwen2": (qwen_like, QWEN2_TEMPLATE),
    "llama31": (llama3_like, LLAMA31_TEMPLATE),
    "mistral": (llama2_like, MISTRAL_TEMPLATE),
}


@pytest.fixture(scope="module", params=["baichuan", *MAKERS])
def chat(request: pytest.FixtureRequest, trained: Trained) -> Chat:
    if request.param == "baichuan":
        return chat_named("baichuan", Tokenizer.from_bytes(trained.model))
    make, template = MAKERS[request.param]
    tokenizer = Tokenizer.from_bytes(make())
    if template is not None:
        return TemplateChat(template, tokenizer)
    return chat_named(request.param, tokenizer)


def asked(chance: random.Random, chat: Chat) -> list[Message]:
    """A conversation of two rounds or more, to be answered."""
    while True:
        messages = conversation(chance, QWEN_SPECIAL)
        if chat.template == MISTRAL_TEMPLATE:
            messages = [message for message in messages if message["role"] != "system"]
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if sum(message["role"] == "user" for message in messages) > 1:
            return messages


def runs_on(chat: Chat, text: str) -> bool:
    """Whether a text may be encoded as one with the heading before it; Mistral's has no end."""
    return text[:1].isspace() or chat.template == MISTRAL_TEMPLATE


def test_a_turn_is_appended_and_gives_the_prompt_of_the_whole(chat: Chat) -> None:
    """Where answers are the tokens of their text; text at a heading's end may be cut otherwise."""
    chance = random.Random(0)
    alike = 0
    for _ in range(60):
        messages = asked(chance, chat)
        before, whole = chat.prompt(messages[:-2]), chat.prompt(messages)
        following = chat.following(messages)
        assert whole[len(whole) - len(following) :] == following
        if runs_on(chat, messages[-2]["content"]):
            continue
        assert [*before, *chat.turns(messages[:-1])[-2], *following] == whole
        alike += 1
    assert alike > 20 or chat.template == MISTRAL_TEMPLATE


def test_no_turn_depends_on_the_text_of_the_answer_before_it(chat: Chat) -> None:
    """So it can follow any tokens, those of an answer that was cut among them."""
    chance = random.Random(1)
    for _ in range(30):
        messages = asked(chance, chat)
        following = chat.following(messages)
        for text in ("", "other", "\n ", "<|im_end|>"):
            other = [*messages[:-2], {"role": "assistant", "content": text}, messages[-1]]
            assert chat.following(other) == following


@pytest.mark.parametrize(
    ("text", "content"),
    [
        # As those of models that think: earlier thoughts are left out once a turn follows.
        ("<think>four</think> 4", "message.content.split('</think>')[-1] if not loop.last else "),
        ("", "'' if not message.content else "),
    ],
)
def test_a_template_that_writes_some_answers_otherwise_later(text: str, content: str) -> None:
    template = CHATML_TEMPLATE.replace("message['content']", f"({content}message.content)")
    if not text:  # and no turn around nothing
        template = template.replace("{% endfor %}", "{% endif %}{% endfor %}").replace(
            "{% for message in messages %}",
            "{% for message in messages %}{% if message.content %}",
        )
    tokenizer = Tokenizer.from_bytes(qwen_like())
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": text},
        {"role": "user", "content": "c"},
    ]
    plain = TemplateChat(CHATML_TEMPLATE, tokenizer)
    assert TemplateChat(template, tokenizer).following(talk) == plain.following(talk)


def test_what_is_between_turns(trained: Trained) -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    qwen = Tokenizer.from_bytes(qwen_like())
    start, end = qwen.id_of("<|im_start|>"), qwen.id_of("<|im_end|>")
    said, heading = qwen.encode("user\nc"), qwen.encode("assistant\n")
    line = qwen.encode("\n")
    chatml = [end, *line, start, *said, end, *line, start, *heading]
    assert chat_named("chatml", qwen).following(talk) == chatml
    own = Tokenizer.from_bytes(trained.model)
    baichuan = chat_named("baichuan", own)
    assert baichuan.following(talk) == [USER_ID, *own.encode("c"), ASSISTANT_ID]
    asked, said, end_of_text = baichuan.turns(talk[:2])
    assert (asked, said) == ([USER_ID, *own.encode("a"), ASSISTANT_ID], own.encode("b"))
    assert end_of_text == [own.eos_id]


def test_a_conversation_by_turns_is_the_whole(chat: Chat) -> None:
    chance = random.Random(2)
    alike = 0
    for _ in range(60):
        messages = asked(chance, chat)[:-1]
        turns = chat.turns(messages)
        assert len(turns) == 2 * sum(one["role"] == "assistant" for one in messages) + 1
        if not any(runs_on(chat, one["content"]) for one in messages[1:]):
            assert [i for ids in turns for i in ids] == chat.render(messages).ids
            alike += 1
    assert alike > 10 or chat.template == MISTRAL_TEMPLATE


def test_a_conversation_that_ends_otherwise(chat: Chat) -> None:
    user = {"role": "user", "content": "a"}
    for messages in ([user], [user, user], [user, {"role": "assistant", "content": "b"}]):
        with pytest.raises(ValueError, match="the last two messages"):
            chat.following(messages)
    with pytest.raises(DataError):
        chat.following([user, {"role": "assistant", "content": None}, user])
