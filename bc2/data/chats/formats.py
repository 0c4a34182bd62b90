"""The forms in which chats are shared, recognised by the keys of a row, and read as messages.

| format | keys |
|---|---|
| `messages` | `messages` or `conversations`: a list of objects with `role` and `content` |
| `sharegpt` | `conversations`, `conversation` or `messages`: objects with `from` and `value` |
| `alpaca` | `instruction` and `output`; `input`, `history` |
| `prompt_completion` | `prompt` and `completion` or `response`: strings or lists of messages |

A `system` text may stand beside each. What would be lost without a word is refused: unknown roles,
tools, images, answers to be compared. Keys that say nothing of these are reported, not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

from bc2.data.chats.bad_chat import BadChat
from bc2.data.chats.row_messages import (
    KEYS,
    Messages,
    listed_messages,
    message_list,
    pair_messages,
    text_at,
    with_system,
)

Format = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]
FORMATS: tuple[Format, ...] = get_args(Format)

Row = Mapping[str, Any]

#: Keys of the list of messages, of which a row has one.
_LISTS = ("messages", "conversations", "conversation")
_ANSWERS = ("completion", "response")
_COMPARED = ("chosen", "rejected")

#: What a row may hold beside its text that layouts here have no place for.
_NO_PLACE = ("tools", "functions", "images", "image", "videos", "audios")

#: Said of single messages alone.
_OF_MESSAGES = ("train", "weight")

#: What is read of a row, or refused, whatever its format.
_BESIDE = ("system", "label", *_NO_PLACE, *_OF_MESSAGES)

_READ: dict[Format, frozenset[str]] = {
    "messages": frozenset((*_LISTS, *_BESIDE)),
    "sharegpt": frozenset((*_LISTS, *_BESIDE)),
    "alpaca": frozenset(("instruction", "input", "output", "history", *_BESIDE)),
    "prompt_completion": frozenset(("prompt", *_ANSWERS, *_BESIDE)),
}


def formats_of(row: Row) -> list[Format]:
    """The formats whose keys a row has, those that are null left out."""
    found: list[Format] = []
    if (key := _list_key(row)) is not None:
        found.append(_list_format(row[key]))
    if _has(row, "instruction") and _has(row, "output"):
        found.append("alpaca")
    if _has(row, "prompt") and any(_has(row, key) for key in _ANSWERS):
        found.append("prompt_completion")
    return found


def recognise(row: Any) -> Format:
    """The format of a row.

    Raises:
        BadChat: it has that of none or of several, or is of answers to be compared.
    """
    check_object(row)
    if any(_has(row, key) for key in _COMPARED):
        raise BadChat(
            "preference",
            f"answers to be compared ({', '.join(key for key in _COMPARED if _has(row, key))})",
            "give it to [pairs], for `bc2 reward` and `bc2 dpo`; or set the source's format if "
            "what else it holds is to be learnt",
        )
    found = formats_of(row)
    if (key := _list_key(row)) is not None and not row[key]:  # nothing tells its format
        raise BadChat("no_messages", f"`{key}` holds no messages")
    if len(found) == 1:
        return found[0]
    if found:
        raise BadChat(
            "several_formats",
            f"it has the keys of {' and of '.join(found)}",
            "set the source's format to the one that is meant",
        )
    for key in _LISTS:
        if _has(row, key):
            raise BadChat("bad_message", f"`{key}` is a {type(row[key]).__name__}, not a list")
    keys = ", ".join([key for key in row if _has(row, key)][:8]) or "none"
    raise BadChat(
        "no_format",
        f"the keys that hold something are those of no format of chats: {keys}",
        "give messages, conversations, instruction and output, or prompt and completion",
    )


def check_object(row: Any) -> None:
    """Raise BadChat unless a row is an object."""
    if not isinstance(row, Mapping):
        kind = type(row).__name__
        raise BadChat("not_an_object", f"the row is a JSON {kind}, not an object")


def read_row(row: Row, form: Format) -> Messages:
    """The messages of a row that has the keys of `form`.

    Raises:
        BadChat: it has not, or what they hold is no conversation.
    """
    check_object(row)
    _check_wanted(row)
    check_row(row)
    messages, read = _READERS[form](row)
    if not messages:
        raise BadChat("no_messages", f"{read} holds no messages")
    return with_system(messages, row)


def unread_keys(row: Row, form: Format) -> Iterator[str]:
    """The keys that hold something and were not read: of the row, and ``[].KEY`` of messages."""
    for key, value in row.items():
        if value is None:
            continue
        if key not in _READ[form] or (key == "label" and not isinstance(value, bool)):
            yield key
        elif isinstance(value, list):
            for message in value:
                if isinstance(message, Mapping):
                    yield from _unread_of_message(message, key)


def _unread_of_message(message: Row, of: str) -> Iterator[str]:
    for key, value in message.items():
        if value is not None and key not in KEYS:
            yield f"{of}[].{key}"


def _check_wanted(row: Row) -> None:
    if row.get("label") is False:
        raise BadChat(
            "label_false", "`label` is false: an answer that is not wanted",
            'leave it out, or set chats.malformed = "skip" to count and skip such rows',
        )  # fmt: skip


def check_row(row: Row) -> None:
    """Raise BadChat of a row with something beside its text that would be lost without a word."""
    for key in _NO_PLACE:
        if row.get(key) not in (None, [], {}, "", "[]"):
            raise BadChat("no_place", f"`{key}`, which chat layouts here have no place for")
    for key in _OF_MESSAGES:
        if _has(row, key):
            raise BadChat(
                "bad_mark", f"`{key}` of a whole row", "write it into the messages it is of"
            )


def _has(row: Row, key: str) -> bool:
    return row.get(key) is not None


def _list_key(row: Row) -> str | None:
    return next((key for key in _LISTS if isinstance(row.get(key), list)), None)


def _list_format(messages: list[Any]) -> Format:
    """By its first message."""
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    return "sharegpt" if "from" in first and "role" not in first else "messages"


def _read_list(row: Row, names: tuple[str, str]) -> tuple[Messages, str]:
    key = _list_key(row)
    if key is None:
        raise BadChat("no_format", f"no list of messages: neither of {', '.join(_LISTS)}")
    if sum(_has(row, other) for other in _LISTS) > 1:
        raise BadChat("several_formats", f"more than one of {', '.join(_LISTS)}")
    return listed_messages(row[key], names, key), f"`{key}`"


def _read_messages(row: Row) -> tuple[Messages, str]:
    return _read_list(row, ("role", "content"))


def _read_sharegpt(row: Row) -> tuple[Messages, str]:
    return _read_list(row, ("from", "value"))


def _read_alpaca(row: Row) -> tuple[Messages, str]:
    messages = list(_history(row.get("history")))
    parts = [text_at(row, "instruction"), text_at(row, "input", "")]
    asked = "\n".join(part for part in parts if part)
    return [*messages, *pair_messages(asked, text_at(row, "output"))], "the row"


def _history(history: Any) -> Iterator[Mapping[str, Any]]:
    """The rounds before, as pairs of a question and its answer."""
    if not isinstance(history, list | None):
        raise BadChat("bad_message", f"`history` is a {type(history).__name__}, not a list")
    for pair in history or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadChat("bad_message", "`history` holds something else than [question, answer]")
        both = dict(zip(("history question", "history answer"), pair, strict=True))
        yield from pair_messages(*(text_at(both, key) for key in both))


def _read_prompt(row: Row) -> tuple[Messages, str]:
    """Of a prompt that is a list no answer is learnt: the completion alone is what is asked for."""
    answers = [key for key in _ANSWERS if _has(row, key)]
    if len(answers) != 1 or not _has(row, "prompt"):
        raise BadChat("no_format", f"not a `prompt` and one of {', '.join(_ANSWERS)}")
    messages = message_list(row, "prompt", "user", learnt=False)
    return [*messages, *message_list(row, answers[0], "assistant")], "the row"


_READERS: dict[Format, Callable[[Row], tuple[Messages, str]]] = {
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "prompt_completion": _read_prompt,
}
