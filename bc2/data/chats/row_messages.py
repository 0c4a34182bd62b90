"""Messages out of a row: their role, their text, and whether and how much they are learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bc2.data.chats.bad_chat import BadChat
from bc2.tokenizer.chat import ROLES, WEIGHTS, Message

Messages = list[Message]

#: Roles of ShareGPT, and the same by the names of other chats.
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES: dict[str, dict[str, str]] = {
    "role": {role: role for role in ROLES},
    "from": {**_SHAREGPT, "system": "system"},
}

#: Roles that are known, and have no place.
_OF_TOOLS = ("tool", "function", "ipython", "observation", "function_call", "tool_call", "tools")

#: What a message may hold beside its text, which would be lost.
_NO_PLACE = (
    "tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking",
    "images", "audio",
)  # fmt: skip

#: How other tools say what is to be learnt.
_OTHER_MARKS = ("loss", "training", "train_detail", "loss_weight")

#: The keys of a message that are read or refused.
KEYS = frozenset(("role", "content", "from", "value", "train", "weight", *_NO_PLACE, *_OTHER_MARKS))


def listed_messages(
    found: Any, names: tuple[str, str], where: str, *, learnt: bool = True
) -> Messages:
    """The messages of a list.

    Args:
        names: the keys of who says it and of what is said.
        where: the key of the list, for errors.
        learnt: whether an assistant's message is to be learnt that does not say so itself.

    Raises:
        BadChat: it is no list of messages.
    """
    if not isinstance(found, list):
        raise BadChat("bad_message", f"`{where}` is a {type(found).__name__}, not a list")
    return [
        _message(each, names, f"`{where}[{number}]`", learnt) for number, each in enumerate(found)
    ]


def message_list(row: Mapping[str, Any], key: str, role: str, *, learnt: bool = True) -> Messages:
    """A text of `role`, or messages as they are; for `learnt` see `listed_messages`.

    Raises:
        BadChat: it is neither.
    """
    if isinstance(row[key], list):
        return listed_messages(row[key], ("role", "content"), key, learnt=learnt)
    return [{"role": role, "content": text_at(row, key)}]


def pair_messages(question: str, answer: str) -> Messages:
    """A question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def with_system(messages: Messages, row: Mapping[str, Any]) -> Messages:
    """Messages with the row's `system` text before them, if it has any.

    Raises:
        BadChat: it is no text, or another one stands there already.
    """
    system = text_at(row, "system", "")
    if not system:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0]["content"] != system:
        raise BadChat("bad_message", "`system` differs from the system message of the list")
    return messages


def text_at(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """The text of a key, which is Unicode.

    Args:
        default: the text where it is missing or null; None: that is an error.

    Raises:
        BadChat: it is no text.
    """
    value = row.get(key)
    if value is None:
        if default is None:
            raise BadChat("no_text", f"`{key}` is {'null' if key in row else 'missing'}")
        return default
    return _checked(value, f"`{key}`")


def _message(found: Any, names: tuple[str, str], where: str, learnt: bool) -> Message:
    who, what = names
    if not isinstance(found, Mapping):
        raise BadChat("bad_message", f"{where} is a {type(found).__name__}, not an object")
    if who not in found or what not in found:
        keys = ", ".join(list(found)[:8]) or "none"
        raise BadChat("bad_message", f"{where} has no `{who}` and `{what}`; its keys: {keys}")
    for key in _NO_PLACE:
        if found.get(key):
            raise BadChat(
                "no_place", f"{where} has `{key}`, which chat layouts here have no place for"
            )
    role = _role(found[who], who, where)
    said = {"role": role, "content": _content(found[what], f"{where} `{what}`")}
    unlearnt = {"train": False} if role == "assistant" and not learnt else {}
    return {**said, **unlearnt, **_marks(found, role, where)}


def _role(said: Any, who: str, where: str) -> str:
    if isinstance(said, str) and said in _ROLES[who]:
        return _ROLES[who][said]
    known = ", ".join(_ROLES[who])
    if said in _OF_TOOLS:
        why = f"{where} is of the role {said!r}: chat layouts here have no place for tools"
        raise BadChat("unknown_role", why)
    raise BadChat("unknown_role", f"{where} is of an unknown role {said!r}; there are {known}")


def _content(value: Any, where: str) -> str:
    """A text, or the texts of parts one after another."""
    if not isinstance(value, list):
        if value is None:
            raise BadChat("no_text", f"{where} is null")
        return _checked(value, where)
    texts = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise BadChat("no_place", f"{where} has a part that is no text: {kind}")
        texts.append(text_at(part, "text"))
    return "".join(texts)


def _checked(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadChat("text_not_string", f"{where} is a {type(value).__name__}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        why = f"{where} has half a surrogate pair at character {error.start}"
        raise BadChat("lone_surrogate", why) from None
    return value


def _marks(found: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """The `train` and `weight` that a message states."""
    marks: dict[str, Any] = {}
    train, weight = found.get("train"), found.get("weight")
    if train is not None:
        if not isinstance(train, bool):
            raise BadChat("bad_mark", f"{where} `train` is {train!r}", "write true or false")
        marks["train"] = train
    if weight is not None:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not WEIGHTS[0] <= weight <= WEIGHTS[1]:
            why = (
                f"{where} `weight` is {weight!r}, and not a number from {WEIGHTS[0]:g} to "
                f"{WEIGHTS[1]:g}"
            )
            raise BadChat("bad_mark", why, "write `train: false` for what is not to be learnt")
        marks["weight"] = float(weight)
    for key in _OTHER_MARKS:
        # An assistant's message is learnt anyway.
        if found.get(key) is not None and not (found[key] is True and role == "assistant"):
            why = f"{where} has `{key}`, which is not read"
            raise BadChat("bad_mark", why, "write `train: false` for what is not to be learnt")
    return marks
