"""What a model that is being trained answers to held-out conversations, between two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bc2.data.chats.conversation import Conversation
from bc2.errors import DataError
from bc2.tokenizer.chat import Chat, learns
from bc2.train.continuations import continuations
from bc2.train.engines.base import Engine


@dataclass(frozen=True)
class AnswerWriter:
    """Writes the first answer that is learnt of each conversation, by the likeliest tokens."""

    conversations: Sequence[Conversation]
    chat: Chat
    room: int
    """Tokens of the model's context."""
    new_tokens: int
    """At most this many tokens are in an answer."""

    def __call__(self, engine: Engine, check: Callable[[], None]) -> list[tuple[str, str, int]]:
        """What was asked, what is answered, and its tokens; of a rank that takes no part, none.

        Args:
            check: called after each token; if it raises, so does this.
        """
        asked = [(question, ids) for question, ids in map(self._prompt, self.conversations) if ids]
        made = continuations(
            engine, [ids for _, ids in asked], self.new_tokens, self.chat.end_ids, check
        )
        return [
            (question, self.chat.generated_bytes(new).decode("utf-8", "replace"), len(new))
            for (question, _), new in zip(asked, made, strict=bool(made))
        ]

    def _prompt(self, conversation: Conversation) -> tuple[str, list[int]]:
        """What is asked before the answer, and its tokens; none where it leaves no room."""
        said = conversation.messages
        answers = (
            number for number, one in enumerate(said) if one["role"] == "assistant" and learns(one)
        )
        asked = said[: next(answers, len(said))]  # users' messages alone may be learnt too
        try:
            ids = self.chat.prompt(asked)
        except DataError:
            return "", []
        fits = len(ids) + self.new_tokens <= self.room
        return asked[-1]["content"], ids if fits else []
