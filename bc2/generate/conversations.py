"""Conversations to be answered: how a model's chat layout makes prompts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bc2.console import note
from bc2.errors import DataError, UsageError, nearest
from bc2.tokenizer.chat import Chat, Message, check_messages

if TYPE_CHECKING:
    from bc2.generate.prompts import Prompt
    from bc2.generate.sampling_config import SamplingConfig

_KEYS = ("role", "content")


@dataclass(frozen=True)
class Conversations:
    """Makes prompts of conversations.

    Args:
        chat: the model's layout.
        window: tokens of the model's context.
        system: put before conversations without a system message of their own.
    """

    chat: Chat
    window: int
    system: str | None = None

    def ids(self, prompt: Prompt, settings: SamplingConfig, where: str) -> list[int]:
        """The tokens of a conversation, within the window beside the answer if the layout says how.

        What a layout leaves out is said. A layout that leaves nothing out may give more tokens than
        the window holds.

        Args:
            where: names the prompt.

        Raises:
            DataError: it is no conversation, or one that the assistant ended.
            UsageError: the answer alone fills the window; a DataError if the prompt asks for it.
        """
        room = self.window - settings.max_new_tokens
        if room < 1:
            error = DataError if "max_new_tokens" in prompt.settings else UsageError
            raise error(
                f"an answer of {settings.max_new_tokens:,} tokens leaves nothing of the window of "
                f"{self.window:,} for the conversation",
                where=where,
                todo="ask for fewer new tokens: --max-new-tokens",
            )
        try:
            messages = self._messages(prompt)
            whole = self.chat.prompt(messages)
            kept = whole if len(whole) <= room else self.chat.prompt(messages, room)
        except DataError as error:
            place = where if error.where is None else f"{where}, {error.where}"
            raise DataError(error.what, where=place, todo=error.todo) from None
        if len(kept) < len(whole):
            note(
                f"{where}: {len(whole) - len(kept):,} of {len(whole):,} tokens are left out, the "
                f"oldest: the window of {self.window:,} has room for {room:,} beside the answer"
            )
        return kept

    def _messages(self, prompt: Prompt) -> Sequence[Message]:
        messages = prompt.messages
        if messages is None:
            messages = ({"role": "user", "content": prompt.text},)
        check_messages(messages)
        if self.system is None or messages[0]["role"] == "system":
            return messages
        return ({"role": "system", "content": self.system}, *messages)


def messages_of(value: Any, where: str) -> tuple[Message, ...]:
    """A conversation in JSON data.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, list):
        raise DataError("`messages` is no list of messages", where=where)
    for number, message in enumerate(value):
        for key in message if isinstance(message, Mapping) else ():
            if key not in _KEYS:
                guess = nearest(key, _KEYS)
                raise DataError(
                    f"unknown key {key!r} of a message",
                    where=f"{where}, message {number}",
                    todo=f"did you mean {guess!r}?" if guess else "it has a `role` and a `content`",
                )
    messages = tuple(value)
    try:
        check_messages(messages)
    except DataError as error:
        place = where if error.where is None else f"{where}, {error.where}"
        raise DataError(error.what, where=place, todo=error.todo) from None
    return messages
