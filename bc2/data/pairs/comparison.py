"""Answers to one prompt, and which of them is better than which."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from bc2.data.chats.bad_chat import BadChat
from bc2.data.chats.row_messages import Messages

#: Scores that differ by a smaller share than this are one score: 0.3 + 0.3 and 0.6.
_SAME = 1e-9


class Answer(NamedTuple):
    """One answer, of one message or more."""

    messages: Messages
    score: float | None = None
    """As the data has it; None: it has none."""
    rank: int | None = None
    """Its place in the order of an annotator: a lower one is better; None: there is no order."""


@dataclass(frozen=True)
class Comparison:
    """What a row compares."""

    prompt: Messages
    answers: tuple[Answer, ...]

    def pairs(self, min_gap: float, unpaired: Counter[str]) -> list[tuple[int, int]]:
        """Every two of its answers of which one is better, as places, the better one first.

        By rank where there are ranks, else by score. Answers of one rank or of one score make no
        pair, nor do two that say the same.

        Args:
            min_gap: two scores make a pair that differ by more than this.
            unpaired: is added to: how many twos make no pair, and why.

        Raises:
            BadChat: ranks say otherwise than scores.
        """
        found = []
        for one, other in itertools.combinations(range(len(self.answers)), 2):
            pair = self._ordered(one, other, min_gap)
            if isinstance(pair, str):
                unpaired[pair] += 1
            elif said(self.answers[one]) == said(self.answers[other]):
                unpaired["identical"] += 1
            else:
                found.append(pair)
        return found

    def _ordered(self, one: int, other: int, min_gap: float) -> tuple[int, int] | str:
        """Two places, the better one first; or why neither is."""
        a, b = self.answers[one], self.answers[other]
        gap = None if a.score is None or b.score is None else _gap(a.score, b.score)
        if a.rank is not None and b.rank is not None:
            if a.rank == b.rank:
                return "same rank"
            first = a.rank < b.rank
            if gap is not None and gap and (gap > 0) != first:
                better, worse = (a, b) if first else (b, a)
                raise BadChat(
                    "contradiction",
                    f"the better answer has the score {better.score:g}, and the other one "
                    f"{worse.score:g}",
                    "repair it, or leave the scores out",
                )
        else:
            assert gap is not None, "an answer without a rank has a score"
            first = gap > 0
        if gap is not None and not abs(gap) > min_gap:
            return "near scores" if gap else "same score"
        return (one, other) if first else (other, one)


def said(answer: Answer) -> list[tuple[str, str]]:
    """Who says what in an answer."""
    return [(message["role"], message["content"]) for message in answer.messages]


def drawn(pairs: list[tuple[int, int]], most: int | None, seed: str) -> list[tuple[int, int]]:
    """At most so many of some pairs, drawn evenly, in their order."""
    if most is None or len(pairs) <= most:
        return pairs
    places = Random(seed).sample(range(len(pairs)), most)
    return [pairs[place] for place in sorted(places)]


def _gap(one: float, other: float) -> float:
    """How much higher a score is; 0 for two that only rounding tells apart."""
    gap = one - other
    return 0.0 if abs(gap) <= _SAME * max(abs(one), abs(other)) else gap
