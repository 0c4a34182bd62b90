"""The forms in which comparisons are shared, recognised by the keys of a row.

| format | keys |
|---|---|
| `pairs` | `prompt`, `chosen` and `rejected`: texts, messages, or lists of them; or lists alone |
| `sharegpt` | `conversations` or `instruction`, with `chosen` and `rejected` |
| `dialogues` | `chosen` and `rejected`: texts of turns, "Human:" and "Assistant:" |
| `scored` | a prompt, and `responses`, each with a `score` |
| `ranked` | a prompt, and `responses`, each with a `rank`, or from the best to the worst |

A prompt of `scored` and `ranked` is `messages`, `conversations`, `prompt` or `instruction`. Keys
that are not read are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

from bc2.data.chats.bad_chat import BadChat
from bc2.data.chats.formats import check_object, check_row, formats_of
from bc2.data.chats.row_messages import KEYS, Messages, text_at
from bc2.data.pairs.comparison import Answer, Comparison
from bc2.data.pairs.dialogues import dialogue_messages, is_dialogue, parted
from bc2.data.pairs.row_answers import (
    SCORES,
    Row,
    answer_at,
    answer_messages,
    is_given,
    messages_of,
    read_prompt,
    score_at,
    two_answers,
    unlearnt,
)

PairForm = Literal["pairs", "sharegpt", "dialogues", "scored", "ranked"]
FORMS: tuple[PairForm, ...] = get_args(PairForm)

#: Keys of a list of messages, of a prompt as a text, and of a list of answers: a row has one.
_LISTS = ("messages", "conversations", "conversation")
_TEXTS = ("prompt", "instruction", "question")
_ANSWERS = ("responses", "answers", "completions")

_COMPARED = ("chosen", "rejected")

#: Keys of an answer of a list: of its text, its score and its rank.
_SAID = ("response", "content", "text", "answer")
_SCORE = ("score", "overall_score")
_RANK = "rank"

_READ = frozenset(
    (*_LISTS, *_TEXTS, *_ANSWERS, *_COMPARED, "input", "system", *(k for ks in SCORES for k in ks))
)
_READ_OF_ANSWERS = frozenset((*_SAID, *_SCORE, _RANK))


def recognise(row: Any) -> PairForm:
    """The format of a row.

    Raises:
        BadChat: it has that of none or of several, or compares nothing.
    """
    check_object(row)
    found = list(_forms_of(row))
    if len(found) > 1:
        raise BadChat(
            "several_formats",
            f"it has the keys of {' and of '.join(found)}",
            "set the source's format to the one that is meant",
        )
    if found:
        return found[0]
    _refuse_uncompared(row)
    keys = ", ".join([key for key in row if is_given(row, key)][:8]) or "none"
    raise BadChat(
        "no_format",
        f"the keys that hold something are those of no format of pairs: {keys}",
        "give prompt, chosen and rejected, or a prompt and responses with a score or a rank each",
    )


def _forms_of(row: Row) -> Iterator[PairForm]:
    if any(is_given(row, key) for key in _COMPARED):
        if any(is_given(row, key) for key in (*_LISTS, "instruction")):
            yield "sharegpt"
        elif not is_given(row, "prompt") and any(is_dialogue(row.get(key)) for key in _COMPARED):
            yield "dialogues"
        else:
            yield "pairs"
    key = _answers_key(row)
    if key is not None:
        answers = [each for each in row[key] if isinstance(each, Mapping)]
        if any(is_given(each, _RANK) for each in answers):
            yield "ranked"
        elif any(is_given(each, score) for each in answers for score in _SCORE):
            yield "scored"
        else:
            raise BadChat(
                "no_format",
                f"`{key}` has neither scores nor ranks: nothing says which answer is better",
                'set format = "ranked" in the source if they stand from the best to the worst',
            )


def _refuse_uncompared(row: Row) -> None:
    """Raise BadChat of a row that has one answer alone."""
    if isinstance(row.get("label"), bool):
        raise BadChat(
            "one_label",
            "one answer with a `label`, and none to compare it with",
            "give chosen and rejected answers of one prompt; those of label true can be learnt by "
            "`bc2 sft`, from [chats]",
        )
    if formats_of(row):
        raise BadChat(
            "not_compared",
            "a conversation, with no answer to compare its own with",
            "give it to [chats], for `bc2 sft`",
        )


def read_row(row: Row, form: PairForm) -> Comparison:
    """What a row that has the keys of `form` compares.

    Raises:
        BadChat: it has not, or what they hold is no comparison.
    """
    check_object(row)
    check_row(row)
    found = _READERS[form](row)
    return Comparison(unlearnt(found.prompt), found.answers)


def unread_keys(row: Row) -> Iterator[str]:
    """The keys that hold something and were not read: of the row, and ``KEY[].KEY`` of lists."""
    for key, value in row.items():
        if value is None:
            continue
        if key not in _READ:
            yield key
            continue
        known = _READ_OF_ANSWERS if key in _ANSWERS else KEYS
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                yield from (
                    f"{key}[].{name}"
                    for name, held in each.items()
                    if held is not None and name not in known
                )


def _answers_key(row: Row) -> str | None:
    return next((key for key in _ANSWERS if isinstance(row.get(key), list)), None)


def _prompt(row: Row) -> Messages:
    """The prompt, by whichever key it has.

    Raises:
        BadChat: there is none, or more than one.
    """
    given = [key for key in (*_LISTS, *_TEXTS) if is_given(row, key)]
    if len(given) != 1:
        many = f"more than one: {', '.join(given)}" if given else "none"
        raise BadChat("no_prompt", f"a row has one prompt, and this has {many}")
    key = given[0]
    if key == "instruction":
        parts = [text_at(row, key), text_at(row, "input", "")]
        return read_prompt(
            [{"role": "user", "content": "\n".join(part for part in parts if part)}],
            row,
            "`instruction`",
        )
    messages = messages_of(row[key], key, "user")
    return read_prompt(messages, row, f"`{key}`")


def _read_pairs(row: Row) -> Comparison:
    chosen, rejected = (answer_at(row, key) for key in _COMPARED)
    if chosen[0]["role"] == "assistant" or rejected[0]["role"] == "assistant":
        return two_answers(_prompt(row), chosen, rejected, row)
    prompt, chosen, rejected = parted(chosen, rejected)
    if is_given(row, "prompt"):
        _check_beginning(messages_of(row["prompt"], "prompt", "user"), prompt)
    return two_answers(read_prompt(prompt, row, "the prompt"), chosen, rejected, row)


def _check_beginning(stated: Messages, found: Messages) -> None:
    """Raise BadChat unless dialogues begin with the prompt that stands beside them."""
    both = [
        [(message["role"], message["content"]) for message in messages]
        for messages in (stated, [one for one in found if one["role"] != "system"])
    ]
    if both[1][: len(both[0])] != both[0] and both[1][-len(both[0]) :] != both[0]:
        raise BadChat(
            "prompts_differ",
            "`chosen` and `rejected` are whole dialogues that do not begin with the `prompt`",
            "leave out the prompt, or give the answers alone",
        )


def _read_sharegpt(row: Row) -> Comparison:
    prompt = _prompt(row)
    chosen, rejected = (answer_at(row, key) for key in _COMPARED)
    return two_answers(prompt, chosen, rejected, row)


def _read_dialogues(row: Row) -> Comparison:
    both = []
    for key in _COMPARED:
        if not is_given(row, key):
            answer_at(row, key)
        both.append(dialogue_messages(text_at(row, key), key))
    for key, messages in zip(_COMPARED, both, strict=True):
        answer_at({key: messages}, key)
    prompt, chosen, rejected = parted(*both)
    return two_answers(read_prompt(prompt, row, "the dialogue before"), chosen, rejected, row)


def _read_scored(row: Row) -> Comparison:
    answers = []
    for where, each in _listed(row):
        score = _key_of(each, _SCORE) if isinstance(each, Mapping) else None
        if score is None:
            raise BadChat("bad_score", f"{where} has no `score`")
        answers.append(Answer(_said(each, where), score_at(each, score, f"{where} `{score}`")))
    return Comparison(_prompt(row), tuple(answers))


def _read_ranked(row: Row) -> Comparison:
    """By their ranks, or where none has one, in their order."""
    found = list(_listed(row))
    stated = any(isinstance(each, Mapping) and is_given(each, _RANK) for _, each in found)
    answers = []
    for place, (where, each) in enumerate(found):
        rank = _rank(each, where) if stated else place
        score = _key_of(each, _SCORE) if isinstance(each, Mapping) else None
        value = None if score is None else score_at(each, score, f"{where} `{score}`")
        answers.append(Answer(_said(each, where), value, rank))
    return Comparison(_prompt(row), tuple(answers))


def _listed(row: Row) -> Iterator[tuple[str, Any]]:
    """Where each answer of the list stands, and the answer."""
    key = _answers_key(row)
    if key is None:
        raise BadChat("no_answer", f"no list of answers: neither of {', '.join(_ANSWERS)}")
    if len(row[key]) < 2:
        raise BadChat("no_answer", f"`{key}` holds {len(row[key])} answers: two make a pair")
    for place, each in enumerate(row[key]):
        yield f"`{key}[{place}]`", each


def _said(answer: Any, where: str) -> Messages:
    """The messages of an answer of a list: a text, or an object with one."""
    if isinstance(answer, Mapping):
        key = _key_of(answer, _SAID)
        if key is None:
            raise BadChat("no_answer", f"{where} has no text: neither of {', '.join(_SAID)}")
        answer = {where: text_at(answer, key)}
    else:
        answer = {where: answer}
    return answer_messages([{"role": "assistant", "content": text_at(answer, where)}], where)


def _rank(answer: Any, where: str) -> int:
    rank = answer.get(_RANK) if isinstance(answer, Mapping) else None
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise BadChat("bad_rank", f"{where} `{_RANK}` is {rank!r}, and not a whole number")
    return rank


def _key_of(row: Row, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if is_given(row, key)), None)


_READERS: dict[PairForm, Callable[[Row], Comparison]] = {
    "pairs": _read_pairs,
    "sharegpt": _read_sharegpt,
    "dialogues": _read_dialogues,
    "scored": _read_scored,
    "ranked": _read_ranked,
}
