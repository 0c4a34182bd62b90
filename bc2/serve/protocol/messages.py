"""The messages of a chat in a request, and how they become those of a layout."""

from __future__ import annotations

from typing import Any

from bc2.errors import DataError
from bc2.serve.protocol.api_error import api_error_of, bad_value, quoted, suggestion
from bc2.serve.protocol.body import is_empty
from bc2.tokenizer.chat import ROLES, check_messages

#: Roles of OpenAI's that are one of ours; a developer's instructions are a system's.
_SAME_ROLE = {"developer": "system"}

#: What an answer of ours or OpenAI's has beside role and content, empty; an answer that comes back
#: in a request brings it along.
_EMPTY = ("annotations", "audio", "function_call", "name", "refusal", "tool_calls", "tool_call_id")

Messages = list[dict[str, str]]


#: The most conversations of a request.
MOST_CONVERSATIONS = 2048


def conversations_of(value: Any) -> list[Messages]:
    """One conversation, or a list of them, each of which ends with an answer of the assistant.

    Raises:
        ApiError: see `messages_of`; or one ends otherwise, or there are too many.
    """
    several = isinstance(value, list) and bool(value) and isinstance(value[0], list)
    if several and len(value) > MOST_CONVERSATIONS:
        message = f"`messages` has {len(value):,} conversations, at most {MOST_CONVERSATIONS:,}"
        raise bad_value("messages", message)
    if not several:
        return [_with_answer(value, "messages")]
    return [_with_answer(one, f"messages[{number}]") for number, one in enumerate(value)]


def _with_answer(value: Any, param: str) -> Messages:
    messages = messages_of(value, answered=False, param=param)
    if messages[-1]["role"] != "assistant":
        raise bad_value(
            f"{param}[{len(messages) - 1}].role",
            "the last message is not the assistant's: there is no answer to score",
        )
    return messages


def messages_of(value: Any, *, answered: bool, param: str = "messages") -> Messages:
    """The messages of a conversation, each with a `role` of `ROLES` and a text `content`.

    Args:
        param: the field that has them.
        answered: the assistant is to speak next, so that it may not have spoken last.

    Raises:
        ApiError: they are none, or in an order that no layout has a place for.
    """
    if not isinstance(value, list):
        message = f"`{param}` should be a list of messages, not {quoted(value)}"
        raise bad_value(param, message, "invalid_type")
    messages = [_message(one, f"{param}[{number}]") for number, one in enumerate(value)]
    try:
        check_messages(messages)
    except DataError as error:
        raise api_error_of(error, param) from None
    if answered and messages[-1]["role"] == "assistant":
        raise bad_value(
            f"{param}[{len(messages) - 1}].role",
            "the last message is the assistant's: there is nothing to answer; end with a message "
            "of the user",
        )
    return messages


def _message(value: Any, param: str) -> dict[str, str]:
    if not isinstance(value, dict):
        message = f"`{param}` should be an object with a `role` and a `content`"
        raise bad_value(param, f"{message}, not {quoted(value)}", "invalid_type")
    for name, given in value.items():
        if name not in ("role", "content"):
            _check_empty(name, given, f"{param}.{name[:60]}")
    for name in ("role", "content"):
        if value.get(name) is None:
            where = f"{param}.{name}"
            raise bad_value(where, f"`{where}` is missing", "missing_required_parameter")
    return {
        "role": _role(value["role"], f"{param}.role"),
        "content": _content(value["content"], f"{param}.content"),
    }


def _check_empty(name: str, value: Any, param: str) -> None:
    if name not in _EMPTY:
        message = f"unknown field {quoted(name)} of a message"
        raise bad_value(
            param, f"{message}{suggestion(name, ('role', 'content'))}", "unknown_parameter"
        )
    if not is_empty(value):
        raise bad_value(param, f"`{param}` is not supported; leave it out", "unsupported_parameter")


def _role(value: Any, param: str) -> str:
    role = _SAME_ROLE.get(value, value) if isinstance(value, str) else value
    if role not in ROLES:
        message = f"`{param}` should be one of {', '.join([*ROLES, *_SAME_ROLE])}"
        raise bad_value(param, f"{message}, not {quoted(value)}")
    return str(role)


def _content(value: Any, param: str) -> str:
    """A text; parts that are texts are put together as they are."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        message = f"`{param}` should be a text or a list of parts, not {quoted(value)}"
        raise bad_value(param, message, "invalid_type")
    return "".join([_part(part, f"{param}[{number}]") for number, part in enumerate(value)])


def _part(value: Any, param: str) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise bad_value(param, f"`{param}` should be an object with a `type`", "invalid_type")
    if value["type"] != "text":
        message = f"parts of the type {quoted(value['type'])} are not supported; send text"
        raise bad_value(f"{param}.type", message, "unsupported_value")
    other = next((name for name in value if name not in ("type", "text")), None)
    if other is not None:
        raise bad_value(
            f"{param}.{other[:60]}", f"unknown field {quoted(other)} of a part", "unknown_parameter"
        )
    if not isinstance(value.get("text"), str):
        raise bad_value(f"{param}.text", f"`{param}.text` should be a text", "invalid_type")
    return str(value["text"])
