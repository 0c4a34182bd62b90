"""Prompts and conversations from a file, each with settings of its own if it has any."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bc2.errors import DataError, UsageError, nearest
from bc2.generate.conversations import Conversations, messages_of
from bc2.generate.requests import Request
from bc2.generate.sampling.seeds import prompt_seed
from bc2.generate.sampling_config import SamplingConfig
from bc2.streams import (
    MAX_DOCUMENT_BYTES,
    BadRow,
    decode,
    numbered_lines,
    open_bytes,
    parse_line,
    reading,
    without_marks,
)
from bc2.text_encoding import find_likely
from bc2.tokenizer.chat import Message
from bc2.tokenizer.tokenizer import Tokenizer

#: The name of a file that means standard input.
STDIN = Path("-")

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Prompt:
    """A text to continue, or a conversation to answer."""

    text: str
    """Of a conversation its last message."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `SamplingConfig` that it has of its own, not validated yet."""
    where: str | None = None
    """Its file and line."""
    messages: tuple[Message, ...] | None = None
    """A conversation; None: `text` alone, in a chat the user's turn."""


@dataclass(frozen=True)
class PromptRequest(Request):
    """The request that is made of a `Prompt`."""

    text: str = ""
    """The prompt, with U+FFFD for lone surrogates, so that it can be printed."""
    between: str = ""
    """What people see between the prompt and what is made of it."""


def prompt_requests(
    prompts: Iterable[Prompt],
    tokenizer: Tokenizer,
    settings: SamplingConfig,
    conversations: Conversations | None = None,
) -> Iterator[PromptRequest]:
    """The requests of prompts, one at a time.

    A prompt without a seed of its own has `prompt_seed` of the common seed and its number.

    Args:
        conversations: makes a chat of each prompt; None: texts are continued.

    Raises:
        DataError: a setting that a prompt has of its own is wrong, or a stop text of it is empty;
            or see `Conversations.ids`.
        UsageError: a common stop id is outside the vocabulary; or see `Conversations.ids`.
    """
    for number, prompt in enumerate(prompts):
        own = _merged(settings, prompt, number)
        for token in own.stop_ids or ():
            if not 0 <= token < tokenizer.vocab_size:
                error = DataError if "stop_ids" in prompt.settings else UsageError
                raise error(
                    f"stop id {token} is outside the vocabulary of {tokenizer.vocab_size:,} pieces",
                    where=prompt.where,
                )
        if "" in prompt.settings.get("stop", ()):
            raise DataError("a stop text is empty", where=prompt.where, todo="leave it out")
        text = _SURROGATE.sub("\ufffd", prompt.text)
        if conversations is None:
            yield PromptRequest(tokenizer.encode_whole(prompt.text), own, prompt.where, text)
        else:
            ids = conversations.ids(prompt, own, prompt.where or f"prompt {number}")
            yield PromptRequest(ids, own, prompt.where, text, "\n\n")


def _merged(settings: SamplingConfig, prompt: Prompt, number: int) -> SamplingConfig:
    own = {"seed": prompt_seed(settings.seed, number), **prompt.settings}
    try:
        return SamplingConfig.model_validate({**settings.model_dump(), **own})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].lower().replace("tuple", "list")
        raise DataError(f"{key}: {said}, not {first['input']!r}", where=prompt.where) from None


def read_prompts(file: Path, *, chat: bool = False) -> Iterator[Prompt]:
    """The prompts of a file, read as they are asked for.

    A line is a prompt, and an empty one is none. In JSON lines (``.jsonl``; of standard input, if
    its first line is a JSON object) it is an object with a string ``prompt``, and the settings
    that are the prompt's own. Files may be compressed (``.gz``, ``.zst``).

    For a chat an object may have ``messages`` instead, and a file of JSON (``.json``) holds one
    conversation, as such an object or as its list of messages, or a list of conversations.

    Args:
        file: `STDIN` is standard input.
        chat: whether prompts are for a chat.

    Raises:
        DataError: no prompt, a damaged file, or a line that is none; with its number.
    """
    name = "stdin" if file == STDIN else str(file)
    if file.is_dir():
        raise DataError("a directory, not a file of prompts", where=name)
    kinds = [suffix for suffix in file.suffixes if suffix not in (".gz", ".zst")]
    if chat and kinds[-1:] == [".json"]:
        yield from _conversations(file, name)
        return
    if kinds[-1:] in ([".json"], [".parquet"], [".csv"]):
        raise DataError(
            f"cannot read prompts from {kinds[-1]}",
            where=name,
            todo="give plain text, a prompt a line, or .jsonl with a `prompt` in each line",
        )
    json = kinds[-1:] == [".jsonl"]
    found = False
    with _opened(file) as stream, reading(file):
        for number, line, _ in numbered_lines(stream):
            if line is not None and not line.strip():
                continue
            if not found and file == STDIN:
                json = _is_object(line)
            found = True
            try:
                prompt = _prompt(line, f"{name}:{number}", json=json, chat=chat)
            except BadRow as bad:
                raise _unreadable(bad, file, f"{name}:{number}") from None
            yield prompt
    if not found:
        raise DataError("no prompt in the file", where=name)


@contextmanager
def _opened(file: Path) -> Iterator[io.BufferedIOBase]:
    if file == STDIN:
        # Not closed with the last prompt.
        with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
            yield stream
        return
    with open_bytes(file) as stream:
        yield stream


def _is_object(line: bytes | None) -> bool:
    try:
        return isinstance(parse_line(line), dict)
    except BadRow:
        return False


def _conversations(file: Path, name: str) -> Iterator[Prompt]:
    """The conversations of a file of JSON."""
    with _opened(file) as stream, reading(file):
        content = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"more than {MAX_DOCUMENT_BYTES:,} bytes", where=name,
            todo="give .jsonl, a conversation a line",
        )  # fmt: skip
    try:
        data = parse_line(without_marks(content))
    except BadRow as bad:
        raise _unreadable(bad, file, name) from None
    of_one = isinstance(data, dict) or (isinstance(data, list) and _has_role(data[:1]))
    every = [data] if of_one else data
    if not isinstance(every, list) or not every:
        raise DataError("no conversation in the file", where=name)
    for number, one in enumerate(every):
        where = name if of_one else f"{name}, conversation {number}"
        yield _prompt_of({"messages": one} if isinstance(one, list) else one, where, chat=True)


def _has_role(messages: list[Any]) -> bool:
    return any(isinstance(one, dict) and "role" in one for one in messages)


def _prompt(line: bytes | None, where: str, *, json: bool, chat: bool) -> Prompt:
    """The prompt of a line. Raises: BadRow, DataError."""
    if json:
        return _prompt_of(parse_line(line), where, chat=chat)
    if line is None:
        raise BadRow("too_long", f"the line is longer than {MAX_DOCUMENT_BYTES:,} bytes")
    return Prompt(decode(line), where=where)


def _unreadable(bad: BadRow, file: Path, where: str) -> DataError:
    if file.is_file():
        find_likely(bad, file)
    if bad.likely is None:
        return DataError(bad.detail, where=where)
    return DataError(
        f"{bad.detail}; the file is likely in {bad.likely}",
        where=where,
        todo=f"make UTF-8 of it (iconv -f {bad.likely} -t UTF-8)",
    )


def _prompt_of(row: Any, where: str, *, chat: bool) -> Prompt:
    messages = _messages_of(row, where, chat=chat)
    if messages is None and not (isinstance(row, dict) and isinstance(row.get("prompt"), str)):
        other = " or with `messages`" if chat else ""
        raise DataError(f"not an object with a `prompt` string{other}", where=where)
    text = row["prompt"] if messages is None else messages[-1]["content"]
    return Prompt(text, _settings_of(row, where, chat=chat), where, messages)


def _messages_of(row: Any, where: str, *, chat: bool) -> tuple[Message, ...] | None:
    if not isinstance(row, dict) or "messages" not in row:
        return None
    if not chat:
        raise DataError(
            "a conversation (`messages`), and prompts are continued as they are", where=where,
            todo="add --chat, or give a `prompt`",
        )  # fmt: skip
    if "prompt" in row:
        raise DataError("both a `prompt` and `messages`", where=where, todo="give one of them")
    return messages_of(row["messages"], where)


def _settings_of(row: Mapping[str, Any], where: str, *, chat: bool) -> dict[str, Any]:
    """The settings that a prompt has of its own, with names that there are."""
    content = ("prompt", "messages") if chat else ("prompt",)
    settings = {key: _tuples(value) for key, value in row.items() if key not in content}
    known = (*content, *SamplingConfig.model_fields)
    for key in settings:
        if key not in known:
            guess = nearest(key, known)
            raise DataError(
                f"unknown key {key!r}",
                where=where,
                todo=f"did you mean {guess!r}?" if guess else f"there are: {', '.join(known)}",
            )
    if isinstance(settings.get("stop"), str):
        settings["stop"] = (settings["stop"],)
    return settings


def _tuples(value: Any) -> Any:
    """JSON's arrays as settings have them."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
