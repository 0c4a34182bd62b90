"""Each kind of fault of a row: found where it is, and nowhere in 100 random conversations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from made_chats import LLAMA3_TEMPLATE, MISTRAL_TEMPLATE, QWEN2_TEMPLATE, conversation
from made_json_tokenizers import LLAMA3_SPECIAL, QWEN_SPECIAL, llama2_like, llama3_like, qwen_like

from bc2.align.samples.row_checks import FAULTS, message_faults, row_faults, unrendered_faults
from bc2.data.chats.conversation import Conversation
from bc2.errors import DataError
from bc2.tokenizer.chat import IGNORED, Chat, Message, Rendered
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.chat_template import TemplateChat
from bc2.tokenizer.layout import ASSISTANT_ID, USER_ID
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import train

HOSTILE = [*QWEN_SPECIAL, *LLAMA3_SPECIAL, "<reserved_106>", "<reserved_107>", "</s>", "<s>"]


def _baichuan() -> Chat:
    text = "The quick brown fox jumps over the lazy dog, and 天地玄黄 follows.\n" * 40
    return chat_named("baichuan", Tokenizer(train([text], TokenizerConfig(vocab_size=512)).model))


MAKERS = {
    "baichuan": _baichuan,
    "chatml": lambda: chat_named("chatml", Tokenizer(qwen_like())),
    "llama3": lambda: chat_named("llama3", Tokenizer(llama3_like())),
    "qwen2 template": lambda: TemplateChat(QWEN2_TEMPLATE, Tokenizer(qwen_like())),
    "llama3 template": lambda: TemplateChat(LLAMA3_TEMPLATE, Tokenizer(llama3_like())),
    "mistral template": lambda: TemplateChat(MISTRAL_TEMPLATE, Tokenizer(llama2_like())),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def chat(request: pytest.FixtureRequest) -> Chat:
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def baichuan() -> Chat:
    return _baichuan()


def said(*messages: Message) -> Conversation:
    return Conversation(messages, "made", "made.jsonl", 1)


def user(text: str = "What follows?") -> Message:
    return {"role": "user", "content": text}


def answer(text: str = "A fox.", **marks: object) -> Message:
    return {"role": "assistant", "content": text, **marks}


TWO_ROUNDS = said(user(), answer(), user("And then?"), answer("A dog."))


def codes(one: Conversation, chat: Chat, rendered: Rendered | None = None) -> list[str]:
    found = row_faults(one, rendered or chat.render(one.messages), chat)
    assert {fault.code for fault in found} <= set(FAULTS)
    return [fault.code for fault in found]


def test_a_good_row_has_no_fault(chat: Chat) -> None:
    assert codes(TWO_ROUNDS, chat) == []


def test_random_conversations_have_the_faults_that_their_words_have(chat: Chat) -> None:
    """Text that spells control tokens, emoji, Chinese: nothing that tokens add is wrong.

    But in a layout whose headings end in text, an answer that begins with white space may be cut
    into other tokens than serving makes, and then the row says so: nothing else may.
    """
    chance = random.Random(1)
    for _ in range(100):
        messages = [one for one in conversation(chance, HOSTILE) if one["role"] != "system"]
        if messages[-1]["role"] != "assistant":
            messages.append(answer("An end."))
        one = said(*messages)
        rendered = chat.render(one.messages)
        of_tokens = row_faults(one, rendered, chat)[len(message_faults(one)) :]
        assert {fault.code for fault in of_tokens} == _served_otherwise(messages, rendered, chat)


def _served_otherwise(messages: Sequence[Message], rendered: Rendered, chat: Chat) -> set[str]:
    """The definition: each prompt as serving makes it, against the row."""
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = chat.prompt(messages[:number])
            if rendered.ids[: len(prompt)] != prompt:
                return {"train_serve_difference"}
    return set()


# -- messages


@pytest.mark.parametrize(
    ("roles", "why"),
    [
        ("uua", "message 1 is the user's, after the user's"),
        ("uaa", "message 2 is the assistant's, after the assistant's"),
        ("aua", "message 0 is the assistant's, at the beginning"),
        ("suas", "message 3 is the system's, after the assistant's"),
        ("sa", "message 1 is the assistant's, after the system's"),
    ],
)
def test_the_first_message_out_of_order_is_named(roles: str, why: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    one = said(*({"role": names[role], "content": "Words."} for role in roles))
    assert [(fault.code, fault.why) for fault in message_faults(one)] == [
        ("roles_out_of_order", why)
    ]


@pytest.mark.parametrize("roles", ["u", "ua", "sua", "uau", "suaua"])
def test_turns_in_order_have_no_fault(roles: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    one = said(*({"role": names[role], "content": "Words."} for role in roles))
    assert message_faults(one) == []


def test_two_answers_in_a_row_are_said_once(baichuan: Chat) -> None:
    assert codes(said(user(), answer(), answer("Again.")), baichuan) == ["roles_out_of_order"]


@pytest.mark.parametrize("text", ["", " \n", "\u3000", "\u200b", "\ufeff\n\u200d"])
def test_an_answer_that_shows_nothing_is_empty(text: str, baichuan: Chat) -> None:
    assert codes(said(user(), answer(text)), baichuan) == ["empty_answer"]


def test_what_is_not_learnt_may_be_empty(baichuan: Chat) -> None:
    one = said(user(), answer("", train=False), user(), answer())
    assert codes(one, baichuan) == []
    assert codes(said(user(""), answer()), baichuan) == []


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("So:\n```python\nprint(1)\n", True),
        ("So:\n```python\nprint(1)\n```\n", False),
        ("  ~~~\n  a\n", True),
        ("Write ``` before code, and after it.", False),
        ("````\n```\n````\nFour hold three.", False),
        ("```markdown\n```python\nx\n```\n```\nBlocks in a block.", False),
        ("```\na\n```\n```js\nb", True),
        ("caf\ufffd", True),
        ("\ufffd is shown for what is none.", False),
        ("It goes on and", False),
    ],
)
def test_only_an_answer_that_certainly_breaks_off_is_cut(text: str, cut: bool) -> None:
    found = [fault.code for fault in message_faults(said(user(), answer(text)))]
    assert found == ["cut_answer"] * cut


def test_a_refused_row_has_its_own_fault_or_the_layouts(baichuan: Chat) -> None:
    late = said(user(), answer(), {"role": "system", "content": "Late."})
    with pytest.raises(DataError) as refused:
        baichuan.render(late.messages)
    assert [one.code for one in unrendered_faults(late, refused.value)] == ["roles_out_of_order"]
    system = said({"role": "system", "content": "Be short."}, user(), answer())
    mistral = MAKERS["mistral template"]()
    with pytest.raises(DataError) as refused:
        mistral.render(system.messages)
    (fault,) = unrendered_faults(system, refused.value)
    assert fault.code == "no_place"
    assert "Conversation roles must alternate" in fault.why


# -- tokens


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (said(user()), "it has no message of the assistant"),
        (said(user(), answer(train=False)), "every message says `train: false`"),
    ],
)
def test_a_row_that_teaches_nothing_says_why(one: Conversation, why: str, chat: Chat) -> None:
    found = row_faults(one, chat.render(one.messages), chat)
    assert [(fault.code, fault.why) for fault in found] == [("no_trained_tokens", why)]


def test_labels_that_were_all_cut_away_are_found(chat: Chat) -> None:
    made = chat.render(TWO_ROUNDS.messages)
    cut = replace(made, labels=[IGNORED] * len(made.ids))
    assert codes(TWO_ROUNDS, chat, cut) == ["no_trained_tokens", *["end_never_trained"] * 2]


def test_an_end_that_is_not_learnt_is_found_at_each_answer(chat: Chat) -> None:
    made = chat.render(TWO_ROUNDS.messages)
    ends = [place for place, label in enumerate(made.labels) if label in chat.end_ids]
    assert len(ends) == 2
    for place, message in zip(ends, (1, 3), strict=True):
        labels = [*made.labels[:place], IGNORED, *made.labels[place + 1 :]]
        (fault,) = row_faults(TWO_ROUNDS, replace(made, labels=labels), chat)
        assert fault.code == "end_never_trained"
        assert f"the end of message {message} (token {place})" in fault.why


def test_an_answer_without_an_end_is_found(baichuan: Chat) -> None:
    """As with tools that train up to the last word: the model then never stops."""
    made = baichuan.render(TWO_ROUNDS.messages)
    cut = Rendered(made.ids[:-1], made.labels[:-1], made.weights[:-1])
    found = row_faults(TWO_ROUNDS, cut, baichuan)
    assert [(one.code, one.why) for one in found] == [
        ("end_never_trained", "nothing ends message 3")
    ]


def test_the_end_of_what_is_not_learnt_is_not_asked_for(chat: Chat) -> None:
    one = said(user(), answer(train=False), user(), answer())
    assert codes(one, chat) == []


def test_a_message_that_became_a_control_token_is_found(baichuan: Chat) -> None:
    """What other tools make of a message that spells `<reserved_106>`."""
    one = said(user("Say X now."), answer())
    made = baichuan.render(one.messages)
    assert made.ids[0] == USER_ID
    typed = [*made.ids[:2], ASSISTANT_ID, *made.ids[3:]]
    found = row_faults(one, replace(made, ids=typed), baichuan)
    assert [(fault.code, fault.why) for fault in found] == [
        ("control_id_from_text", "token 2 is <reserved_107>")
    ]


def test_a_doubled_beginning_is_found() -> None:
    chat = MAKERS["llama3"]()
    made = chat.render(TWO_ROUNDS.messages)
    begin = made.ids[0]
    assert begin == chat.tokenizer.bos_id
    doubled = Rendered([begin, *made.ids], [IGNORED, *made.labels], [1.0, *made.weights])
    assert codes(TWO_ROUNDS, chat, doubled)[:1] == ["doubled_bos"]


def test_an_answer_whose_white_space_joins_its_heading_is_told() -> None:
    """ChatML ends a heading with a line end: two line ends are one token of their own."""
    chat = MAKERS["chatml"]()
    one = said(user(), answer("\nA fox."), user(), answer("\nA dog."))
    found = row_faults(one, chat.render(one.messages), chat)
    assert [(fault.code, fault.why) for fault in found] == [
        ("train_serve_difference", "before message 1, which begins with white space"),
        ("train_serve_difference", "before message 3, which begins with white space"),
    ]
