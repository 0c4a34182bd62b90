"""What can be wrong with a row of chats by itself, and what is done about such rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from bc2.data.documents import ROWS_NAMED
from bc2.errors import DataError
from bc2.streams import BadRow, RowFault

#: Every reason for which a row is no conversation.
ChatFault = Literal[
    RowFault,
    "bad_value",  # a cell of a table that holds what cannot be read
    "no_format",  # its keys are those of none of the formats
    "several_formats",  # its keys are those of more than one
    "mixed_formats",  # another format than the rows before it in its file
    "preference",  # answers to be compared, of which one is not to be learnt
    "label_false",  # an answer that is not wanted
    "no_messages",  # a conversation of no messages
    "bad_message",  # a message that is no object of strings
    "unknown_role",  # said by somebody else than system, user, assistant
    "no_place",  # tools, images and other things that layouts here have no place for
    "bad_mark",  # `train` or `weight` with a value that says nothing
    # of comparisons
    "not_compared",  # a conversation, with nothing to compare its answer with
    "one_label",  # an answer that is wanted or not, alone
    "no_prompt",  # nothing that is answered
    "prompts_differ",  # two answers, of which each answers something else
    "no_answer",  # a pair that lacks one of its answers
    "identical_answers",  # a pair of twice the same answer
    "bad_score",  # a score that is no finite number, or outside of the source's range
    "bad_rank",  # a rank that is no whole number
    "contradiction",  # the answer that is said to be the better one has the lower score
]

#: Most characters of what is said of a row: a role or a key may be as long as its file.
_MOST_CHARACTERS = 400

#: Rows that are as they should be, but not to be learnt: no share of them is too much.
UNWANTED: frozenset[ChatFault] = frozenset({"label_false"})


class BadChat(Exception):
    """A row that is no conversation.

    Args:
        detail: what is wrong, beginning with a small letter.
        todo: what to do about it, if not to repair it.
    """

    def __init__(self, reason: ChatFault, detail: str, todo: str | None = None):
        detail = detail if len(detail) <= _MOST_CHARACTERS else f"{detail[:_MOST_CHARACTERS]}…"
        super().__init__(detail)
        self.reason: ChatFault = reason
        self.detail = detail
        self.todo = todo

    @classmethod
    def of(cls, bad: BadRow) -> BadChat:
        """The same of a row that could not be read."""
        if bad.likely is None:
            return cls(bad.reason, bad.detail)
        detail = f"{bad.detail}; the file is likely in {bad.likely}"
        return cls(bad.reason, detail, f'set encoding = "{bad.likely}" in the source')


@dataclass
class SkippedRows:
    """The rows that one source lost, by reason."""

    source: str
    malformed: Literal["stop", "skip"]
    section: str = "chats"
    """The section of the recipe that says what is done."""
    counts: Counter[ChatFault] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    """The first ones, as FILE:ROW REASON; FILE is relative to the source."""

    def reject(self, bad: BadChat, place: str, name: str) -> None:
        """Count a row, or stop.

        Args:
            place: the row, to be found on this machine.
            name: the same by the file's name in its source.

        Raises:
            DataError: the recipe says ``malformed = "stop"``.
        """
        if self.malformed == "stop":
            raise DataError(
                f"malformed row in source {self.source!r}: {bad.detail}",
                where=place,
                todo=bad.todo
                or f'repair it, or set {self.section}.malformed = "skip" to count and skip such '
                "rows",
            )
        self.counts[bad.reason] += 1
        if len(self.first) < ROWS_NAMED:
            self.first.append(f"{name} {bad.reason}")

    def check(self, taken: int, limit: float) -> None:
        """Raise DataError if more than a share of `limit` of the rows was malformed."""
        bad = sum(count for reason, count in self.counts.items() if reason not in UNWANTED)
        if bad > limit * (bad + taken):
            raise DataError(
                f"{bad:,} of {bad + taken:,} rows of source {self.source!r} could not be read: "
                f"{self.section}.max_malformed is {limit:g}",
                where=", ".join(self.first[:3]),
                todo="look at these rows, set the source's format, or raise "
                f"{self.section}.max_malformed",
            )
