"""Overrides of a recipe, as ``--set`` spells them: ``section.key=value``.

A key has the form of TOML's dotted keys: a part with a dot, an equals sign or a space at its ends
is quoted, as in ``pretrain.weights."web.en"=2``. A value is TOML if all of it is; anything else is
a plain string. Nothing of an override is ever dropped.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from bc2.errors import RecipeError
from bc2.toml_file import MOST_DEPTH, KeyPath, dotted

#: A part of a key with the mark after it. What is quoted may hold any character but a line's end.
_PART = re.compile(
    r"""[ \t]*("(?:[^"\\\r\n]|\\.)*"|'[^'\r\n]*'|[^\s."'=](?:[^.=\r\n]*[^.=\s])?)[ \t]*([.=])"""
)

#: A place in a list is written with at most so many digits.
_PLACE_DIGITS = 9


#: The most characters of an override in a message.
_SHOWN = 100


def spelled_place(override: str) -> str:
    """An override as the place of an error: one line, whatever it holds."""
    text = override if len(override) <= _SHOWN else override[: _SHOWN - 1] + "…"
    return f"--set {text if text.isprintable() else ascii(text)}"


def parse_override(override: str) -> tuple[KeyPath, Any]:
    """The key and the value of an override.

    Raises:
        RecipeError: it is not of the form ``section.key=value``.
    """
    path: list[str] = []
    at, mark = 0, "."
    while mark != "=":
        part = _PART.match(override, at)
        if part is None or len(path) == MOST_DEPTH:
            raise _unreadable(override)
        path.append(_unquoted(part[1], override))
        at, mark = part.end(), part[2]
    return tuple(path), _value(override[at:])


def _unreadable(override: str) -> RecipeError:
    todo = "write section.key=value; quote a part of the key that has a dot"
    return RecipeError(f"cannot read {spelled_place(override)}", todo=todo)


def _unquoted(part: str, override: str) -> str:
    if part[0] not in "\"'":
        return part
    try:
        (name,) = tomllib.loads(f"{part} = 0")
    except ValueError:
        raise _unreadable(override) from None
    return name


def _value(text: str) -> Any:
    """A value in TOML; or else `text` as it is, without white space around it.

    What would be TOML but for a rest that TOML drops (a comment) or reads as another key (on a
    further line) is a plain string.
    """
    try:
        table, items = tomllib.loads(f"value = {text}"), tomllib.loads(f"items = [{text}]")
    except (ValueError, RecursionError):
        return text.strip()
    if table.keys() != {"value"} or items.keys() != {"items"} or len(items["items"]) != 1:
        return text.strip()
    value = table["value"]
    # A day or a time is nothing that a recipe knows: it is a name that looks like one.
    return text.strip() if isinstance(value, datetime.date | datetime.time) else value


def assign(data: dict[str, Any], path: KeyPath, value: Any, spelled: str) -> None:
    """Put a value at its key, in copies of the tables on the way.

    Raises:
        RecipeError: the key leads through something that is no table.
    """
    table: Any = data
    for depth, part in enumerate(path[:-1]):
        if isinstance(table, list):
            table = _item(table, part, spelled)
            continue
        below = table.get(part)
        if isinstance(below, Mapping):
            below = dict(below)
        elif isinstance(below, list):
            below = list(below)
        elif below is not None:
            inside = dotted(path[: depth + 1])
            raise RecipeError(f"{inside} is a value, not a table", where=spelled_place(spelled))
        else:
            below = {}
        table[part] = below
        table = below
    if isinstance(table, list):
        raise RecipeError(
            "name a key of the item, not the item",
            where=spelled_place(spelled),
            todo=f"or set the whole list: {dotted(path[:-1])}=[...]",
        )
    table[path[-1]] = value


def _item(table: list[Any], part: str | int, spelled: str) -> Any:
    digits = str(part)
    # No isdigit(): "²" is a digit to it, and none to int().
    place = digits.isascii() and digits.isdecimal() and len(digits) <= _PLACE_DIGITS
    index = int(digits) if place else -1
    if not 0 <= index < len(table):
        raise RecipeError(
            f"no item {part!r} in a list of {len(table)}",
            where=spelled_place(spelled),
            todo=f"its items are 0 to {len(table) - 1}" if table else "the list is empty",
        )
    if not isinstance(table[index], Mapping):
        raise RecipeError(f"item {index} is a value, not a table", where=spelled_place(spelled))
    table[index] = dict(table[index])
    return table[index]
