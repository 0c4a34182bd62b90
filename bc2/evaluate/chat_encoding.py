"""Prompts in a model's chat layout: the ids of what lm-eval renders to a text and encodes.

lm-eval asks for a text. It is given one that also holds the control tokens and texts that it was
made of, so that what a row says never becomes a control token, and so that a layout's ids are its
own: a beginning that the layout does not write is not added, as in transformers'
``apply_chat_template``. Where lm-eval adds one all the same, it is of the tokenizer's doing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bc2.console import note
from bc2.errors import DataError
from bc2.evaluate.encoding import PromptEncoder
from bc2.tokenizer.chat import Chat, Message
from bc2.tokenizer.chat_parts import Control, Text, written


class ChatContext(str):
    """A conversation as lm-eval renders it, with its parts."""

    __slots__ = ("parts",)
    parts: tuple[Control | Text, ...]


class ChatPromptEncoder(PromptEncoder):
    """Encodes the prompts of a task as chats; for one thread.

    Args:
        prefix_id: see `PromptEncoder`, which encodes what is no chat: a text without context.
    """

    def __init__(self, chat: Chat, *, prefix_id: int):
        super().__init__(chat.tokenizer, prefix_id=prefix_id)
        self._chat = chat
        self._said = False

    def template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> ChatContext:
        """Messages as a prompt: what lm-eval calls ``apply_chat_template`` of a model.

        As there, a layout without a place for a system message loses it, which is said.

        Args:
            add_generation_prompt: False: the last message is the assistant's, and goes on.

        Raises:
            DataError: the layout has no place for these messages.
        """
        try:
            parts = self._parts(messages, add_generation_prompt)
        except DataError:
            if messages[0]["role"] != "system":
                raise
            parts = self._parts(messages[1:], add_generation_prompt)
            self._say_that_it_lost_the_system()
        context = ChatContext(written(parts, self._chat.tokenizer))
        context.parts = tuple(parts)
        return context

    def _parts(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> list[Control | Text]:
        parts = self._chat.parts(messages, generation_prompt=add_generation_prompt)
        while not add_generation_prompt and not (isinstance(parts[-1], Text) and parts[-1].learnt):
            parts.pop()  # the end of the assistant's turn, which goes on
        return parts

    def _say_that_it_lost_the_system(self) -> None:
        if not self._said:
            note(f"the layout {self._chat.name} has no system message: the task's is left out")
        self._said = True

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt.

        Raises:
            DataError: see `pair`.
        """
        head, tail = self._split(text, None)
        return head + self._text(tail)

    def pair(
        self, context: str, continuations: Sequence[str], *, where: str | None = None
    ) -> tuple[list[int], list[list[int]]]:
        """See `PromptEncoder.pair`.

        White space at the end of a context, such as the line break after the assistant's name,
        belongs to the continuations here too.

        Raises:
            DataError: the task has changed the prompt, or a continuation has no tokens.
        """
        if not context:
            return super().pair(context, continuations, where=where)
        head, tail = self._split(context, where)
        kept = tail.rstrip()
        ids = self._text(kept)
        answers = [self._text(tail + text)[len(ids) :] for text in continuations]
        for text, answer in zip(continuations, answers, strict=True):
            if not answer:
                raise DataError(f"the continuation {text!r} has no tokens", where=where)
        return head + ids, answers

    def question_tokens(self, text: str) -> int:
        """See `PromptEncoder.question_tokens`."""
        return len(self.encode(self.template([{"role": "user", "content": text}])))

    def _split(self, context: str, where: str | None) -> tuple[list[int], str]:
        """The ids of a context up to its last control token, and the text after that."""
        if not isinstance(context, ChatContext):
            raise DataError(
                "the task changes its prompts after the chat layout has been applied",
                where=where,
                todo="leave out --apply-chat-template for it",
            )
        parts = context.parts
        controls = [at for at, part in enumerate(parts) if isinstance(part, Control)]
        place = controls[-1] + 1 if controls else 0
        return self._chat.encode_parts(parts[:place]).ids, _joined(parts[place:])

    def _text(self, text: str) -> list[int]:
        return self._chat.encode_parts([Text(text)]).ids


def _joined(parts: Iterable[Control | Text]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))
