"""Pairs whose answers are samples, each checked.

What is certainly wrong with a pair is a fault: what is wrong with one of its answers, as
`bc2.align.samples.row_checks` finds it, and what only two answers can have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bc2.align.samples.sample import Sample
from bc2.align.samples.sample_store import Samples
from bc2.data.pairs.pairs import PairTable
from bc2.tokenizer.chat import IGNORED

#: Each kind of fault of a pair: what it says of both.
PAIR_FAULTS = {
    "identical": "both answers are the same tokens: the loss is ln 2, and teaches nothing",
    "prompts_differ": "the tokens before the two answers are not the same",
}


class BadPair(NamedTuple):
    """A pair that cannot be trained on."""

    place: int
    """Of the pair in the split."""
    code: str
    """A key of `PAIR_FAULTS`, or of `bc2.align.samples.row_checks.FAULTS`."""
    why: str


@dataclass(frozen=True)
class PairSamples:
    """The pairs of a split that can be trained on. Shapes: P pairs, N samples."""

    samples: Samples
    """The answers with their prompts, each once."""
    table: PairTable
    """Of these pairs."""
    places: npt.NDArray[np.int64]
    """[P, 2], the chosen and the rejected answer in `samples`."""
    too_long: tuple[tuple[int, int], ...]
    """Pairs that do not fit into a row, by their place in the split, and their tokens."""
    faults: tuple[BadPair, ...]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[P], tokens of both answers with their prompts, the last of each left out."""
        both: npt.NDArray[np.int64] = self.samples.lengths[self.places].astype(np.int64)
        total: npt.NDArray[np.int64] = both.sum(axis=1)
        return total

    @classmethod
    def of(cls, table: PairTable, samples: Samples, room: int, *, ends: bool) -> PairSamples:
        """Match pairs with their answers.

        Args:
            table: all pairs of a split.
            samples: the answers that could be rendered.
            room: tokens of a row.
            ends: whether the last token of an answer is read too, as a reward model does.
        """
        faults = [*_faults_of_answers(table, samples)]
        place = _places(table, samples)
        known = np.flatnonzero((place >= 0).all(axis=1))
        sizes = samples.lengths[place[known]].astype(np.int64).sum(axis=1) + 2 * ends
        long = {int(i): int(size) for i, size in zip(known, sizes, strict=True) if size > room}
        long |= _too_long_answers(table, samples)
        for number in known.tolist():
            chosen, rejected = (samples.sample(at) for at in place[number].tolist())
            faults += [
                BadPair(number, code, PAIR_FAULTS[code]) for code in _differ(chosen, rejected)
            ]
        wrong = {fault.place for fault in faults} | long.keys()
        kept = np.array([n for n in known.tolist() if n not in wrong], np.int64)
        return cls(
            samples, table[kept], place[kept], tuple(sorted(long.items())),
            tuple(sorted(faults)),
        )  # fmt: skip


def _places(table: PairTable, samples: Samples) -> npt.NDArray[np.int64]:
    """[P, 2] places of both answers in `samples`; -1 for one that is not there."""
    answers = np.stack([table.chosen, table.rejected], axis=1)
    size = int(max(answers.max(initial=-1), samples.index.max(initial=-1))) + 1
    place_of = np.full(size, -1, np.int64)
    place_of[samples.index] = np.arange(len(samples))
    found: npt.NDArray[np.int64] = place_of[answers]
    return found


def _faults_of_answers(table: PairTable, samples: Samples) -> Iterator[BadPair]:
    """What is wrong with either answer of a pair."""
    by_answer: dict[int, list[tuple[str, str]]] = {}
    for bad in samples.faults:
        by_answer.setdefault(bad.place, []).append((bad.code, bad.why))
    for which, answers in (("chosen", table.chosen), ("rejected", table.rejected)):
        for number, answer in enumerate(answers.tolist()):
            for code, why in by_answer.get(answer, ()):
                yield BadPair(number, code, f"the {which} answer: {why}")


def _too_long_answers(table: PairTable, samples: Samples) -> dict[int, int]:
    """Pairs of which one answer alone does not fit, and its tokens."""
    tokens = dict(samples.too_long)
    found = {}
    for number, both in enumerate(zip(table.chosen.tolist(), table.rejected.tolist(), strict=True)):
        most = max(tokens.get(answer, 0) for answer in both)
        if most:
            found[number] = most
    return found


def _differ(chosen: Sample, rejected: Sample) -> Iterator[str]:
    """The codes of what is wrong between two answers."""
    if np.array_equal(chosen.tokens, rejected.tokens) and np.array_equal(
        chosen.labels, rejected.labels
    ):
        yield "identical"
    elif not np.array_equal(prompt_of(chosen), prompt_of(rejected)):
        yield "prompts_differ"


def prompt_of(sample: Sample) -> npt.NDArray[np.int32]:
    """The tokens before the first that is learnt."""
    first = int(np.argmax(sample.labels != IGNORED))
    return sample.tokens[: first + 1]


def with_end(sample: Sample) -> Sample:
    """A sample with its last token, at which alone a reward model is read: its label is itself."""
    tokens = np.append(sample.tokens, sample.labels[-1]).astype(np.int32)
    labels = np.full(len(tokens), IGNORED, np.int32)
    labels[-1] = tokens[-1]
    return Sample(tokens, labels, (labels != IGNORED).astype(np.float32))
