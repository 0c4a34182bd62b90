"""Prompts, answers and scores out of a row of comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bc2.data.chats.bad_chat import BadChat
from bc2.data.chats.row_messages import Messages, listed_messages, text_at, with_system
from bc2.data.pairs.comparison import Answer, Comparison, said
from bc2.tokenizer.chat import Message

Row = Mapping[str, Any]

#: The largest score: squares of what is larger lose what tells two scores apart.
MOST_SCORE = 1e12

#: Keys of the score of either answer of a pair: of both, those of one line.
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)


def is_given(row: Row, key: str) -> bool:
    """Whether a key holds something."""
    return row.get(key) is not None


def messages_of(found: Any, where: str, role: str) -> Messages:
    """A text of `role`, a message, or a list of messages with the keys of either naming.

    Raises:
        BadChat: it is none of them.
    """
    if isinstance(found, Mapping):
        found = [found]
    if isinstance(found, list):
        first = found[0] if found and isinstance(found[0], Mapping) else {}
        shared = "from" in first and "role" not in first
        return listed_messages(found, ("from", "value") if shared else ("role", "content"), where)
    return [{"role": role, "content": text_at({where: found}, where)}]


def answer_at(row: Row, key: str) -> Messages:
    """The answer of a key, which ends with the assistant.

    Raises:
        BadChat: there is none, or it is none.
    """
    found = row.get(key)
    if found is None or found == [] or found == {}:
        state = "missing" if key not in row else "null" if found is None else "empty"
        raise BadChat("no_answer", f"a pair without an answer: `{key}` is {state}")
    messages = messages_of(found, key, "assistant")
    if messages[-1]["role"] != "assistant":
        why = f"`{key}` ends with a message of the {messages[-1]['role']}, not with an answer"
        raise BadChat("no_answer", why)
    return messages


def read_prompt(messages: Messages, row: Row, where: str) -> Messages:
    """The messages of a prompt, after the row's `system` text.

    Raises:
        BadChat: it says nothing, or ends with an answer.
    """
    if not any(message["content"].strip() for message in messages):
        raise BadChat("no_prompt", f"{where} is empty: there is nothing that is answered")
    if messages[-1]["role"] != "user":
        last = messages[-1]["role"]
        raise BadChat("no_prompt", f"{where} ends with a message of the {last}, not of the user")
    return with_system(messages, row)


def two_answers(prompt: Messages, chosen: Messages, rejected: Messages, row: Row) -> Comparison:
    """A comparison of a better answer and a worse one, with their scores if the row has any.

    Raises:
        BadChat: both are the same, or one is no answer.
    """
    scores = two_scores(row)
    answers = tuple(
        Answer(answer_messages(messages, key), score, rank)
        for rank, (key, messages, score) in enumerate(
            zip(("chosen", "rejected"), (chosen, rejected), scores, strict=True)
        )
    )
    if said(answers[0]) == said(answers[1]):
        raise BadChat("identical_answers", "`chosen` and `rejected` are the same answer")
    return Comparison(prompt, answers)


def answer_messages(messages: Messages, where: str) -> Messages:
    """Messages of an answer, all of the assistant's learnt.

    Raises:
        BadChat: a mark says otherwise, or it does not begin with the assistant.
    """
    if messages[0]["role"] != "assistant":
        why = f"`{where}` begins with a message of the {messages[0]['role']}, after the prompt"
        raise BadChat("prompts_differ", why)
    for message in messages:
        if not message.get("train", True) or message.get("weight", 1.0) != 1.0:
            raise BadChat(
                "bad_mark", f"`{where}` has a `train` or `weight`: answers count as a whole",
                "leave them out of comparisons",
            )  # fmt: skip
    return [_plain(message) for message in messages]


def unlearnt(messages: Messages) -> Messages:
    """Messages of a prompt, of which nothing is learnt."""
    return [
        {**_plain(message), "train": False} if message["role"] == "assistant" else _plain(message)
        for message in messages
    ]


def _plain(message: Message) -> Message:
    return {"role": message["role"], "content": message["content"]}


def two_scores(row: Row) -> tuple[float | None, float | None]:
    """The scores of the chosen and the rejected answer.

    Raises:
        BadChat: one alone has a score, or it is no score.
    """
    for keys in SCORES:
        given = [is_given(row, key) for key in keys]
        if all(given):
            return score_at(row, keys[0], f"`{keys[0]}`"), score_at(row, keys[1], f"`{keys[1]}`")
        if any(given):
            missing = keys[given.index(False)]
            raise BadChat("bad_score", f"one answer has a score and the other none: no `{missing}`")
    return None, None


def score_at(row: Row, key: str, where: str) -> float:
    """The score of a key, which is a finite number and not beyond `MOST_SCORE`.

    Raises:
        BadChat: it is none.
    """
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadChat("bad_score", f"{where} is {value!r}, and not a number")
    if not abs(value) <= MOST_SCORE:
        shown = f"{value:g}" if isinstance(value, float) else "too large"
        why = f"{where} is {shown}: a score is a finite number within ±{MOST_SCORE:g}"
        raise BadChat("bad_score", why)
    return float(value)
