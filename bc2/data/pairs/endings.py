"""A preference that is planted: of two answers alike but for their last sentences, one ending wins.

Both answers say what is right, and then the same two sentences in either order: so they have the
same words and the same length, and nothing but the order tells which wins. What is asked is what
`bc2.data.chats.instructions` makes. Nobody prefers any of it: it is data to try things on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from bc2.data.chats.conversation import Conversation
from bc2.data.chats.instructions import made_chats
from bc2.data.documents import SourceFile
from bc2.data.pairs.comparison import Answer, Comparison
from bc2.data.pairs.row_answers import unlearnt

#: The answer that ends with the first of them wins.
WINS, LOSES = "Hope this helps.", "That is all."

#: Pairs, each of a prompt of its own.
COUNT = 2000


class MadeRow(NamedTuple):
    """A comparison, and the conversation that it was made of."""

    comparison: Comparison
    chat: Conversation


def made_endings(files: Sequence[SourceFile], source: str, seed: int) -> Iterator[MadeRow]:
    """Comparisons made of some of `instruction_files`, in an order that is drawn.

    So any beginning of them is of all kinds of tasks.
    """
    # Of what is asked twice, one answer is taken: each prompt has one pair.
    asked = {_asked(chat): chat for chat in made_chats(files, source, seed)}
    random = Random(f"{seed} endings")
    for chat in random.sample(list(asked.values()), min(COUNT, len(asked))):
        yield MadeRow(_compared(chat), chat)


def _asked(chat: Conversation) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in chat.messages[:-1])


def _compared(chat: Conversation) -> Comparison:
    *prompt, answer = chat.messages
    answers = (
        _ending(str(answer["content"]), LOSES, WINS, rank=0),
        _ending(str(answer["content"]), WINS, LOSES, rank=1),
    )
    return Comparison(unlearnt(prompt), answers)


def _ending(said: str, *sentences: str, rank: int) -> Answer:
    message = {"role": "assistant", "content": " ".join((said, *sentences))}
    return Answer([message], rank=rank)
