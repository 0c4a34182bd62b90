"""Conversations as tokens: the chat layout that a model was, or is to be, trained with.

A layout is data on an artifact, ``chat.json`` beside the tokenizer: one of those in
`bc2.tokenizer.chat_layouts` by its name, or an imported Jinja template. Each gives the tokens of a
conversation, what of them is to be learnt, the ids that end an answer, and a template for export.

What a message says stays text: no content becomes a control token or a turn's marker.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bc2.errors import DataError
from bc2.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bc2.tokenizer.chat_parts import Control, PartEncoder, Text

#: The label of a token that is not learnt, as in `torch.nn.functional.cross_entropy`.
IGNORED = -100

ROLES = ("system", "user", "assistant")

#: The least and the largest `weight`: sums of them in fp32 neither vanish nor overflow.
WEIGHTS = (1e-6, 1e6)

#: Stands for each answer where only what is around it counts.
_ANSWER = "Yes."

#: A `role`, one of `ROLES`, and a `content`; for training, `train` and `weight` if they are not
#: the default: see `learns` and `weight_of`.
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The tokens of a conversation."""

    ids: list[int]
    labels: list[int]
    """What is to be learnt at each place, that is from the tokens before it; `IGNORED` elsewhere.
    It is the token itself but in Baichuan's layout, where the marker of the next turn stands at
    the place of the end of an answer."""
    weights: list[float]
    """How much the label at each place counts: 1 unless the message says another `weight`."""

    @property
    def mask(self) -> list[bool]:
        """Whether each place is learnt: the assistant's text and the end of it."""
        return [label != IGNORED for label in self.labels]


class Chat(ABC):
    """A chat layout over a tokenizer.

    Attributes:
        name: of the layout.
        end_ids: tokens that end an answer.
        template: the layout as a Jinja template for transformers.
        markers: tokens of the layout that the tokenizer takes for ordinary pieces; `end_ids` may
            be among them.
        cuts_beginnings: whether what is too long for the window, even alone, loses its beginning.
    """

    name: str
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    template: str
    markers: frozenset[int] = frozenset()
    cuts_beginnings: bool = False
    _encode: PartEncoder

    @abstractmethod
    def parts(
        self, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> list[Control | Text]:
        """A conversation as control tokens and text: see `render`."""

    def encode_parts(self, parts: Iterable[Control | Text]) -> Rendered:
        """The tokens of parts, text between two control tokens encoded as one."""
        return self._encode(parts)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> Rendered:
        """The tokens of a conversation, for training; of one to be answered for generation.

        Args:
            generation_prompt: end with the beginning of the assistant's turn.

        Raises:
            DataError: no messages, or one that this layout has no place for.
        """
        return self.encode_parts(self.parts(messages, generation_prompt=generation_prompt))

    def generated_bytes(self, ids: Iterable[int]) -> bytes:
        """`Tokenizer.generated_bytes` of an answer, in which markers of turns are no text."""
        return self.tokenizer.generated_bytes([i for i in ids if i not in self.markers])

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What ``chat.json`` holds."""

    def prompt(self, messages: Sequence[Message], room: int | None = None) -> list[int]:
        """The tokens of a conversation that is to be answered.

        Args:
            room: the most tokens, the window minus those of the answer. A layout that does not
                say what to leave out ignores it.

        Raises:
            DataError: see `render`; or the assistant has the last word already.
        """
        check_messages(messages)
        if messages[-1]["role"] == "assistant":
            raise DataError(
                "the last message is the assistant's: there is nothing to answer",
                todo="end with a message of the user",
            )
        return self.render(messages, generation_prompt=True).ids

    def following(self, messages: Sequence[Message]) -> list[int]:
        """The tokens to append to an answer as it was sampled, so that the assistant speaks again.

        They end the answer, whether it ended itself or was cut, and say what the user says then.
        No earlier token is looked at: sampled ones need not be those that their text is encoded to.
        Nor is the text of an answer: a template may write what a model thought, or said nothing,
        otherwise in a later turn.

        Args:
            messages: a conversation that ends with the answer and the user's next message.

        Raises:
            DataError: see `render`.
            ValueError: it ends otherwise.
        """
        if [message.get("role") for message in messages[-2:]] != ["assistant", "user"]:
            raise ValueError("the last two messages are not the assistant's and the user's")
        check_messages(messages)
        plain = [
            {**message, "content": _ANSWER} if message["role"] == "assistant" else message
            for message in messages
        ]
        *_, last = self._around_answers(plain, generation_prompt=True)
        return self.encode_parts(last).ids

    def turns(self, messages: Sequence[Message]) -> list[list[int]]:
        """The tokens of a conversation, each answer's text apart, as if it had been sampled.

        Returns:
            What is before the first answer, that answer, what is between it and the next one, and
            so on; at last what is after the last one, which may be nothing.

        Raises:
            DataError: see `render`.
        """
        return [self.encode_parts(parts).ids for parts in self._around_answers(messages)]

    def _around_answers(
        self, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> list[list[Control | Text]]:
        """The parts of a conversation: those around answers, and between them single answers."""
        check_messages(messages)
        marked = [{**message, "train": message["role"] == "assistant"} for message in messages]
        found: list[list[Control | Text]] = [[]]
        for part in self.parts(marked, generation_prompt=generation_prompt):
            # A control token has no `learnt`; the end of an answer is one in every layout.
            if getattr(part, "learnt", False):
                found += [[part], []]
            else:
                found[-1].append(part)
        return found


def learns(message: Message) -> bool:
    """Whether a message is to be learnt: its `train`, else whether it is the assistant's."""
    return bool(message.get("train", message["role"] == "assistant"))


def weight_of(message: Message) -> float:
    """How much a message's labels count: its `weight`, else 1."""
    return float(message.get("weight", 1.0))


def check_messages(messages: Sequence[Message]) -> None:
    """Raise DataError unless they are messages in an order that all layouts have a place for."""
    if not messages:
        raise DataError("a conversation without messages", todo="give at least one")
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise DataError("not an object with a `role` and a string `content`", where=where)
        if message.get("role") not in ROLES:
            raise DataError(
                f"unknown role {message.get('role')!r}", where=where,
                todo=f"roles are {', '.join(ROLES)}",
            )  # fmt: skip
        _check_marks(message, where)
        if message["role"] == "system" and number:
            raise DataError(
                "a system message after the first one", where=where, todo="put it first"
            )


def _check_marks(message: Message, where: str) -> None:
    train, weight = message.get("train", True), message.get("weight", 1.0)
    if not isinstance(train, bool):
        raise DataError(f"`train` is {train!r}", where=where, todo="write true or false")
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:
        raise DataError(
            f"`weight` is {weight!r}, and not a number above 0", where=where,
            todo="write `train: false` for what is not to be learnt",
        )  # fmt: skip
    least, most = WEIGHTS
    if not least <= weight <= most:
        raise DataError(
            f"`weight` is {weight!r}, and not from {least:g} to {most:g}", where=where,
            todo="say how much it counts beside messages of weight 1",
        )  # fmt: skip
