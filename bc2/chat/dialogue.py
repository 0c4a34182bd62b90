"""A conversation as tokens: what was sampled stays as it is, and each turn is appended to it.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from bc2.errors import DataError, UsageError
from bc2.tokenizer.chat import Chat, Message


@dataclass(frozen=True)
class Round:
    """What the user said, and what the assistant answered."""

    user: str
    answer: str
    """The text of `said`, up to a stop text."""
    asked: tuple[int, ...]
    """The tokens between the answer before and this one; of the first round those before it."""
    said: tuple[int, ...]
    """The tokens of the answer as they were sampled, without one that ended it."""


@dataclass(frozen=True)
class Question:
    """A message of the user that is to be answered."""

    user: str
    asked: tuple[int, ...]
    """See `Round`."""
    prompt: list[int]
    """All that the model is to continue."""
    left_out: int
    """Rounds, the oldest, that the window has no room for."""
    cut: int
    """Tokens that the beginning of the prompt lost, where even this message alone is too long."""


class Dialogue:
    """The rounds of a conversation, and the prompt for the next answer.

    A prompt is the beginning as the layout writes it, then answers and turns by turns, each as it
    was when it was made. So a new turn changes no earlier token, until the oldest rounds fall out.

    Args:
        chat: the model's layout.
        window: tokens of the model's context.
        system: the system's message.

    Raises:
        DataError: the layout has no place for it.
    """

    def __init__(self, chat: Chat, window: int, system: str | None = None):
        self.chat = chat
        self.window = window
        self.rounds: list[Round] = []
        #: Rounds, the oldest, that the last question left out.
        self.left_out = 0
        self.system: str | None = None
        self.set_system(system)

    def set_system(self, text: str | None) -> None:
        """Let a conversation begin otherwise; its rounds stay.

        Raises:
            DataError: the layout has no place for a system's message; nothing is changed.
        """
        messages = [*_system(text), _said("user", "a")]
        self.chat.prompt(messages)
        # A template may move it to the newest message, which changes earlier tokens.
        self.chat.following([*messages, _said("assistant", "b"), _said("user", "c")])
        self.system = text

    def clear(self) -> None:
        """Forget all rounds; the system's message stays."""
        self.rounds, self.left_out = [], 0

    @property
    def messages(self) -> list[Message]:
        """The whole conversation."""
        return self._messages(self.rounds)

    def ask(self, user: str, longest: int) -> Question:
        """What to continue for an answer to a message; nothing is changed.

        Of a conversation that the window has no room for beside the answer, whole rounds are left
        out, the oldest first.

        Args:
            longest: the most tokens of the answer.

        Raises:
            DataError: the layout has no place for the message, or the window not even for it alone.
            UsageError: the answer alone fills the window.
        """
        room = room_for(self.window, longest)
        alone = self._beginning(user)
        if not self.rounds:
            return self._alone(user, alone, alone, room)
        near = self._messages(self.rounds[min(self.left_out, len(self.rounds) - 1) :])
        asked = self.chat.following([*near, _said("user", user)])
        # [rounds] tokens from the answer of each round on, with the new message.
        sizes = [len(one.asked) + len(one.said) for one in self.rounds]
        later = list(accumulate(reversed(sizes), initial=len(asked)))[::-1]
        for first, one in enumerate(self.rounds):
            if later[first + 1] + len(one.said) >= room:
                continue
            beginning = self._beginning(one.user)
            if len(beginning) + len(one.said) + later[first + 1] <= room:
                prompt = [*beginning, *one.said]
                for each in self.rounds[first + 1 :]:
                    prompt += [*each.asked, *each.said]
                return Question(user, tuple(asked), [*prompt, *asked], first, 0)
        return self._alone(user, asked, alone, room)

    def add(self, question: Question, said: Sequence[int], answer: str) -> None:
        """Keep an answer to the last question, whole or not."""
        self.rounds.append(Round(question.user, answer, question.asked, tuple(said)))
        self.left_out = question.left_out

    def _alone(self, user: str, asked: Sequence[int], alone: list[int], room: int) -> Question:
        """The question without any round before it."""
        cut = max(0, len(alone) - room)
        if cut and not self.chat.cuts_beginnings:
            raise DataError(
                f"the message has {len(alone):,} tokens with what the layout writes around it, and "
                f"the window of {self.window:,} has room for {room:,} beside the answer",
                todo="shorten it, or ask for fewer new tokens (max_new_tokens)",
            )
        return Question(user, tuple(asked), alone[cut:], len(self.rounds), cut)

    def _beginning(self, user: str) -> list[int]:
        return self.chat.prompt([*_system(self.system), _said("user", user)])

    def _messages(self, rounds: Sequence[Round]) -> list[Message]:
        turns = [
            _said(role, text)
            for one in rounds
            for role, text in (("user", one.user), ("assistant", one.answer))
        ]
        return [*_system(self.system), *turns]


def room_for(window: int, longest: int) -> int:
    """Tokens of the window that an answer of `longest` tokens leaves to the conversation.

    Raises:
        UsageError: none.
    """
    if window - longest < 1:
        raise UsageError(
            f"an answer of {longest:,} tokens leaves nothing of the window of {window:,} for the "
            "conversation",
            todo="ask for fewer new tokens (max_new_tokens)",
        )
    return window - longest


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _system(text: str | None) -> list[Message]:
    return [] if text is None else [_said("system", text)]
