"""Texts in requests: as text or as token ids, one or several."""

from __future__ import annotations

from typing import Any

from bc2.serve.protocol.api_error import bad_value, quoted

#: A text, or its token ids.
TextOrIds = str | list[int]

#: The most texts of one request.
MOST_TEXTS = 2048

#: Token ids are smaller; a vocabulary says how much.
_ID_LIMIT = 1 << 31


def texts_of(value: Any, param: str) -> list[TextOrIds]:
    """One text or several, each as text or as ids.

    Raises:
        ApiError: it is neither, mixed, empty, or more than `MOST_TEXTS`.
    """
    if isinstance(value, str) or _are_ids(value):
        return [text_of(value, param)]
    if not isinstance(value, list):
        message = f"`{param}` should be a text, a list of token ids, or a list of either"
        raise bad_value(param, f"{message}, not {quoted(value)}", "invalid_type")
    if not 0 < len(value) <= MOST_TEXTS:
        said = "is empty" if not value else f"has {len(value):,} texts, and may have {MOST_TEXTS:,}"
        raise bad_value(param, f"`{param}` {said}")
    texts = [text_of(one, f"{param}[{number}]") for number, one in enumerate(value)]
    if any(isinstance(text, str) != isinstance(texts[0], str) for text in texts):
        raise bad_value(param, f"`{param}` mixes texts and token ids; give one of them")
    return texts


def text_of(value: Any, param: str) -> TextOrIds:
    """A text, or its token ids.

    Raises:
        ApiError: it is neither, or empty.
    """
    if not isinstance(value, (str, list)):
        message = f"`{param}` should be a text or a list of token ids, not {quoted(value)}"
        raise bad_value(param, message, "invalid_type")
    if not value:
        raise bad_value(param, f"`{param}` is empty; begin with some text")
    return value if isinstance(value, str) else ids_of(value, param)


def ids_of(value: Any, param: str) -> list[int]:
    """A list of token ids, which may be empty.

    Raises:
        ApiError: it is no list, or one of them is none.
    """
    if not isinstance(value, list):
        message = f"`{param}` should be a list of token ids, not {quoted(value)}"
        raise bad_value(param, message, "invalid_type")
    for number, token in enumerate(value):
        # A bool is an int to Python.
        if type(token) is not int:
            message = f"`{param}[{number}]` should be a token id, not {quoted(token)}"
            raise bad_value(f"{param}[{number}]", message, "invalid_type")
        if not 0 <= token < _ID_LIMIT:
            raise bad_value(f"{param}[{number}]", f"{quoted(token)} is no token id")
    return value


def _are_ids(value: Any) -> bool:
    """Whether a list is of token ids rather than of texts; its first item decides."""
    return isinstance(value, list) and bool(value) and type(value[0]) is int
