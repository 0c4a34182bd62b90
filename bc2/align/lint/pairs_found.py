"""What was found in the pairs of one split. Shapes: P pairs, A answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bc2.align.lint.lint_report import Place
from bc2.align.lint.text_scan import TextScan
from bc2.align.pairs.pair_samples import PairSamples
from bc2.align.samples.sample_store import Samples
from bc2.data.chats.conversation import Conversation
from bc2.data.pairs.pairs import Pairs, PairTable
from bc2.data.splits import Split
from bc2.tokenizer.chat import Message, learns


def prompt_of(answer: Conversation) -> tuple[Message, ...]:
    """The messages before the first of the answer."""
    messages = answer.messages
    first = next((n for n, one in enumerate(messages) if learns(one)), len(messages))
    return messages[:first]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class PairsFound:
    """The pairs of a split, matched with their answers as samples, and what their texts are."""

    split: Split
    pairs: Pairs
    table: PairTable
    """All pairs, those that cannot be trained on included."""
    matched: PairSamples
    """Those that can be."""
    origins: pa.Table
    """The source, file and row of each."""
    scan: TextScan = field(default_factory=TextScan)
    """Of the answers, each with its prompt."""

    def scanned(self, scan: TextScan) -> PairsFound:
        """With what was read of the texts."""
        return replace(self, scan=scan)

    @property
    def samples(self) -> Samples:
        """The answers that could be rendered."""
        return self.matched.samples

    def place(self, number: int, why: str) -> Place:
        """Where a pair was read."""
        one = self.origins.slice(number, 1).to_pylist()[0]
        return Place(one["source"], one["file"], one["row"], self.split, number, why)

    def source(self, number: int) -> str:
        """The name of a pair's source."""
        return self.pairs.sources[int(self.table.source_ids[number])]

    def pairs_with(self, answer: int) -> list[int]:
        """The pairs that an answer is in."""
        return self._pairs_of_answers.get(answer, [])

    @cached_property
    def _pairs_of_answers(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        both = zip(self.table.chosen.tolist(), self.table.rejected.tolist(), strict=True)
        for number, answers in enumerate(both):
            for answer in dict.fromkeys(answers):
                found.setdefault(answer, []).append(number)
        return found

    @cached_property
    def prompt_of_answer(self) -> dict[int, int]:
        """The number of the prompt of each answer."""
        return {
            answer: int(self.table.prompt[numbers[0]])
            for answer, numbers in self._pairs_of_answers.items()
        }

    @cached_property
    def prompt_texts(self) -> dict[int, str]:
        """Of each prompt who says what, but for case, white space and the system message."""
        texts: dict[int, str] = {}
        for answer, one in enumerate(self.pairs.answers.read(self.split)):
            prompt = self.prompt_of_answer.get(answer)
            if prompt is not None and prompt not in texts:
                said = [m for m in prompt_of(one) if m["role"] != "system"]
                texts[prompt] = "\n".join(f"{m['role']} {_plain(m['content'])}" for m in said)
        return texts

    def with_answers(self, answers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """[P], whether one of a pair's answers is among `answers`."""
        return np.isin(self.table.chosen, answers) | np.isin(self.table.rejected, answers)

    @cached_property
    def said(self) -> npt.NDArray[np.int64]:
        """[A], a number of each answer with its prompt, the same for those that say the same."""
        digests = np.array([one.hex() for one in self.scan.digests], "U32")
        return np.asarray(np.unique(digests, return_inverse=True)[1], np.int64)

    @cached_property
    def copies(self) -> list[tuple[int, int]]:
        """Pairs that their source has before: the first one, and each."""
        return self._copies[0]

    @property
    def copies_of_others(self) -> int:
        """Pairs that another source has before, and their own has not."""
        return self._copies[1] - len(self.copies)

    @cached_property
    def _copies(self) -> tuple[list[tuple[int, int]], int]:
        within: list[tuple[int, int]] = []
        first: dict[tuple[int, int, int], int] = {}
        known: set[tuple[int, int]] = set()
        again = 0
        for number, (source, better, worse) in enumerate(self._edges()):
            again += (better, worse) in known
            known.add((better, worse))
            before = first.setdefault((source, better, worse), number)
            if before != number:
                within.append((before, number))
        return within, again

    def _edges(self) -> Iterator[tuple[int, int, int]]:
        """Source, and what the better and the worse answer say, of each pair."""
        table, said = self.table, self.said
        columns = (table.source_ids, said[table.chosen], said[table.rejected])
        return zip(*(column.tolist() for column in columns), strict=True)

    @cached_property
    def reversed(self) -> npt.NDArray[np.int64]:
        """Pairs of which the same answers stand the other way round too."""
        known = {(better, worse) for _, better, worse in self._edges()}
        return np.array(
            [n for n, (_, a, b) in enumerate(self._edges()) if a != b and (b, a) in known], np.int64
        )

    @cached_property
    def cyclic(self) -> npt.NDArray[np.int64]:
        """Other pairs in a cycle: a is better than b, b than c, and c than a."""
        better, worse = self.said[self.table.chosen], self.said[self.table.rejected]
        size = len(self.scan.digests)
        graph = coo_array((np.ones(len(better), np.int8), (better, worse)), shape=(size, size))
        _, part = connected_components(graph, directed=True, connection="strong")
        inside = (part[better] == part[worse]) & (better != worse)
        return np.setdiff1d(np.flatnonzero(inside), self.reversed)
