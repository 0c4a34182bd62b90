"""How a reward model reads an answer: the conversation in the model's own layout, to its end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bc2.align.pairs.pair_samples import with_end
from bc2.align.samples.rendered_chats import checked
from bc2.align.samples.sample import Sample, sample_of
from bc2.data.chats.conversation import Conversation
from bc2.errors import DataError
from bc2.model.store import CONFIG, load_config
from bc2.registry import Artifact
from bc2.tokenizer.chat import Chat, Message, learns
from bc2.tokenizer.chat_file import chat_of
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import tokenizer_path

#: Faults of a row that is to be learnt, and no fault of one that is to be scored: an answer that
#: breaks off is worth what it is worth.
_SCORED = frozenset({"cut_answer"})


class Unfit(NamedTuple):
    """Why an answer cannot be scored."""

    code: str
    """A key of `bc2.align.samples.row_checks.FAULTS`, "no_answer" or "too_long"."""
    why: str


class ReadAnswer(NamedTuple):
    """An answer as a reward model reads it."""

    sample: Sample
    """The conversation up to the end of the answer, at which its one label is."""
    tokens: int
    """Those of the answer and of its end, as they are learnt."""


@dataclass(frozen=True)
class AnswerReader:
    """The layout of a reward model, and how much it reads."""

    chat: Chat
    window: int
    """The most tokens of a conversation with its end."""

    @classmethod
    def of(cls, artifact: Artifact) -> AnswerReader:
        """That of a checkpoint.

        Raises:
            DataError: it has no layout or no configuration.
            IntegrityError: a file is not what was published.
        """
        if CONFIG not in artifact.files():
            raise DataError(
                f"{artifact.title} holds no {CONFIG}", where=str(artifact.path),
                todo="name a reward model: bc2 registry list --kind checkpoint --role reward",
            )  # fmt: skip
        artifact.file(CONFIG)
        tokenizer = Tokenizer.load(tokenizer_path(artifact))
        return cls(chat_of(artifact, tokenizer), load_config(artifact.path).context_length)

    def read(self, messages: Sequence[Message]) -> ReadAnswer | Unfit:
        """A conversation that ends with an answer; or why it cannot be scored.

        Args:
            messages: with the marks of `answer_marked`, or those of a prompt and its answer.
        """
        if not messages or messages[-1]["role"] != "assistant":
            return Unfit("no_answer", "the last message is not the assistant's")
        rendered, faults = checked(Conversation(tuple(messages), "", "", 0), self.chat)
        wrong = next((fault for fault in faults if fault[0] not in _SCORED), None)
        if rendered is None or wrong is not None:
            return Unfit(*(wrong or faults[0]))
        sample = sample_of(rendered)
        length = len(sample.tokens) + 1
        if length > self.window:
            return Unfit("too_long", f"{length:,} tokens, and the model reads {self.window:,}")
        return ReadAnswer(with_end(sample), sample.trained)


def answer_marked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages of which the last alone is learnt: the answer, and all before it its prompt."""
    last = len(messages) - 1
    return tuple(
        {"role": one["role"], "content": one["content"], "train": number == last}
        for number, one in enumerate(messages)
    )


def prompt_of(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages before the first that is learnt."""
    return tuple(itertools.takewhile(lambda one: not learns(one), messages))
