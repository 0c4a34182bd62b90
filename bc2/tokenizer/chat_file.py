"""``chat.json``: the chat layout of an artifact, beside its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.errors import DataError, nearest
from bc2.files import canonical_json
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_layouts import LAYOUTS, TurnChat
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE

if TYPE_CHECKING:
    from bc2.registry import Artifact


def chat_named(name: str, tokenizer: Tokenizer) -> Chat:
    """A layout that bc2 knows by name.

    Raises:
        DataError: there is none, or the tokenizer lacks its control tokens.
    """
    if name not in LAYOUTS:
        guess = nearest(name, LAYOUTS)
        raise DataError(
            f"no such chat layout: {name!r}",
            todo=f"did you mean {guess!r}?" if guess else f"layouts: {', '.join(LAYOUTS)}",
        )
    return TurnChat(LAYOUTS[name], tokenizer)


def chat_from_json(data: Any, tokenizer: Tokenizer) -> Chat:
    """The layout that the contents of a ``chat.json`` say.

    Raises:
        DataError: they say none, or one that does not go with the tokenizer.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("layout"), str):
        raise DataError("not an object with a `layout`")
    if data["layout"] != "jinja":
        return chat_named(data["layout"], tokenizer)
    template, tokens = data.get("template"), data.get("tokens", {})
    words = isinstance(tokens, Mapping) and all(isinstance(one, str) for one in tokens.values())
    if not isinstance(template, str) or not words:
        raise DataError("the jinja layout needs a `template` and, if any, `tokens` by name")
    # Here, since jinja2 takes long to import.
    from bc2.tokenizer.chat_template import TemplateChat

    return TemplateChat(template, tokenizer, tokens)


def chat_bytes(chat: Chat) -> bytes:
    """What ``chat.json`` holds for a layout; the same layout gives the same bytes."""
    return canonical_json(chat.to_json()).encode()


def read_chat(path: Path, tokenizer: Tokenizer) -> Chat:
    """The layout of a ``chat.json``.

    Raises:
        DataError: it is none, or does not go with the tokenizer.
    """
    try:
        return chat_from_json(json.loads(path.read_text(encoding="utf-8")), tokenizer)
    except ValueError as error:
        raise DataError(f"not a chat layout: {error}", where=str(path)) from None
    except DataError as error:
        where = str(path) if error.where is None else f"{path}, {error.where}"
        raise DataError(error.what, where=where, todo=error.todo) from None


def check_has_layout(artifact: Artifact) -> None:
    """See that a model has a layout, before its tokenizer is read.

    Raises:
        DataError: it has none.
    """
    if CHAT_FILE not in artifact.files():
        raise DataError(
            f"{artifact.title} has no chat layout: it was not trained with turns",
            where=str(artifact.path),
            todo="give it a plain prompt, or name a model with a layout",
        )


def chat_of(artifact: Artifact, tokenizer: Tokenizer) -> Chat:
    """The layout of a model, where chat is asked of it.

    Raises:
        DataError: the model has none.
        IntegrityError: its file is not what was published.
    """
    check_has_layout(artifact)
    return read_chat(artifact.file(CHAT_FILE), tokenizer)
