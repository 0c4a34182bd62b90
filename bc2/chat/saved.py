"""Conversations in files: JSON with their messages, and their tokens as they were sampled.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bc2.chat.dialogue import Dialogue, Round
from bc2.errors import Bc2Error, DataError, UsageError
from bc2.files import replace_durably
from bc2.options import output_file
from bc2.registry import Artifact
from bc2.streams import MAX_DOCUMENT_BYTES, BadRow, open_bytes, parse_line, reading

#: What such a file says of itself.
_VERSION = 1
_KIND = "bc2_chat"
_TODO = "name a file that /save has written"


@dataclass(frozen=True)
class Saved:
    """A conversation of a file."""

    path: Path
    title: str
    """Of the model that it was held with."""
    digest: str
    """Of that model."""
    system: str | None
    sampling: Mapping[str, Any]
    """Settings by name; not validated."""
    rounds: tuple[Round, ...]
    intact: bool
    """Whether its tokens are those of its messages: nobody has edited the file."""


def write_saved(
    path: Path, dialogue: Dialogue, sampling: Mapping[str, Any], artifact: Artifact
) -> None:
    """Write a conversation; a file that is one already is replaced.

    Raises:
        UsageError: it cannot be written there, or there is a file that is no conversation.
    """
    path = output_file(path, "the file")
    if path.exists():
        try:
            read_saved(path)
        except Bc2Error:
            raise UsageError(
                "there is a file already, and not of a conversation", where=str(path),
                todo="name another file",
            ) from None  # fmt: skip
    data = _data(dialogue, sampling, artifact)
    replace_durably(path, _spelled(data))


def _data(dialogue: Dialogue, sampling: Mapping[str, Any], artifact: Artifact) -> dict[str, Any]:
    told = {
        "model": {"title": artifact.title, "digest": artifact.digest},
        "system": dialogue.system,
        "messages": [dict(one) for one in dialogue.messages if one["role"] != "system"],
        "ids": [list(ids) for one in dialogue.rounds for ids in (one.asked, one.said)],
    }
    return {_KIND: _VERSION, **told, "sampling": dict(sampling), "digest": _digest(told)}


def _spelled(data: Mapping[str, Any]) -> bytes:
    """JSON with a line for each field; in ASCII where a text holds half a UTF-16 pair."""

    def spell(*, escaped: bool) -> bytes:
        fields = [f'"{name}": {json.dumps(data[name], ensure_ascii=escaped)}' for name in data]
        return ("{" + ",\n ".join(fields) + "}\n").encode()

    try:
        return spell(escaped=False)
    except UnicodeEncodeError:
        return spell(escaped=True)


def _digest(told: Mapping[str, Any]) -> str:
    """Tells texts that were edited; in ASCII, since a message may hold half a UTF-16 pair."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_saved(path: Path) -> Saved:
    """Read a conversation.

    Raises:
        DataError: the file is missing, or holds none.
    """
    with open_bytes(path) as stream, reading(path):
        content = stream.read(MAX_DOCUMENT_BYTES + 1)
    try:
        if len(content) > MAX_DOCUMENT_BYTES:
            raise BadRow("too_long", f"more than {MAX_DOCUMENT_BYTES:,} bytes")
        data = parse_line(content.removeprefix(b"\xef\xbb\xbf"))  # some editors begin so
    except BadRow as bad:
        raise DataError(f"no saved conversation: {bad}", where=str(path), todo=_TODO) from None
    wrong = _fault(data)
    if wrong is not None:
        raise DataError(f"no saved conversation: {wrong}", where=str(path), todo=_TODO)
    texts = [one["content"] for one in data["messages"]]
    ids = [tuple(one) for one in data["ids"]]
    parts = zip(texts[::2], texts[1::2], ids[::2], ids[1::2], strict=True)
    told = {name: data[name] for name in ("model", "system", "messages", "ids")}
    return Saved(
        path,
        data["model"]["title"],
        data["model"]["digest"],
        data["system"],
        data["sampling"],
        tuple(Round(*part) for part in parts),
        _digest(told) == data.get("digest"),
    )


def _fault(data: Any) -> str | None:
    """What is wrong with the data of a file; None: nothing."""
    if not isinstance(data, dict) or data.get(_KIND) != _VERSION:
        return f"it does not say `{_KIND}: {_VERSION}`"
    model, system, sampling = (data.get(name) for name in ("model", "system", "sampling"))
    if not isinstance(model, dict) or not _texts([model.get("title"), model.get("digest")]):
        return "`model` has no title and digest"
    if not isinstance(system, str | None):
        return "`system` is no text"
    if not isinstance(sampling, dict):
        return "`sampling` holds no settings"
    messages, ids = data.get("messages"), data.get("ids")
    if not isinstance(messages, list) or not isinstance(ids, list) or len(ids) != len(messages):
        return "`messages` and `ids` are no lists of the same length"
    said = [one for one in messages if isinstance(one, dict) and _texts([one.get("content")])]
    roles = [one.get("role") for one in said]
    if len(said) < len(messages) or roles != ["user", "assistant"] * (len(messages) // 2):
        return "`messages` are not the user's and the assistant's in turn"
    if not all(isinstance(one, list) and all(type(i) is int for i in one) for one in ids):
        return "`ids` are no lists of integers"
    return None


def _texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
