"""Pairs as people are shown them: the tokens of both answers, and which of them are learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bc2.align.lint.lint_report import Place
from bc2.align.lint.pair_lint import PairEpoch, PairLintTask, look
from bc2.align.lint.pairs_found import PairsFound
from bc2.align.lint.shown_tokens import ShownRow, ShownSample, shown_conversation
from bc2.data.pairs.pairs import Pairs
from bc2.data.splits import SPLITS
from bc2.errors import DataError
from bc2.tokenizer.chat import Chat

#: Most ids of an answer that are made tokens: pages show fewer, and one may have millions.
_MOST_IDS = 8_000

#: Most pairs that a row number may mean: files and sources have the same numbers, and a row with
#: many answers makes many pairs.
_MOST = 20


def find_pairs(task: PairLintTask, asked: str) -> list[ShownSample]:
    """Both answers of the pairs that a row number means.

    Args:
        asked: ``N``, or ``SOURCE:N``, as findings name rows.

    Raises:
        DataError: there is none.
    """
    pairs, chat = Pairs.open(task.folder), task.source.chat()
    source, _, number = asked.rpartition(":")
    shown: list[ShownSample] = []
    for split in SPLITS:
        found = look(task, pairs, chat, split, scans=False)
        rows = found.origins.select(["source", "row"]).to_pylist()
        for place, one in enumerate(rows):
            if number == str(one["row"]) and source in ("", one["source"]):
                shown += _both(found, chat, place, None)
            if len(shown) >= 2 * _MOST:
                return shown
    if not shown:
        raise DataError(
            f"no pair was read from row {asked}", where=task.ref,
            todo=f"give N or SOURCE:N; sources are {', '.join(pairs.sources)}",
        )  # fmt: skip
    return shown


def shown_pairs(task: PairLintTask, places: Sequence[Place]) -> Iterator[list[ShownSample]]:
    """Both answers of the pairs at some places, of very long ones the beginning."""
    pairs, chat = Pairs.open(task.folder), task.source.chat()
    found = {one.split: look(task, pairs, chat, one.split, scans=False) for one in places}
    for one in places:
        yield _both(found[one.split], chat, one.index, _MOST_IDS)


def first_pair_row(task: PairLintTask) -> ShownRow | None:
    """The first row of an epoch, as the model is given it; None: there are no pairs."""
    pairs, chat = Pairs.open(task.folder), task.source.chat()
    train = look(task, pairs, chat, "train", scans=False)
    epoch = PairEpoch.of(train, task)
    if not len(epoch.rows):
        return None
    inside = epoch.rows[0]
    numbers = train.matched.table.index[epoch.entries[inside]].tolist()
    shown = [one for number in numbers for one in _both(train, chat, number, None)]
    padding = task.config.sequence_length - int(epoch.lengths[inside].sum())
    return ShownRow(tuple(shown), padding)


def _both(found: PairsFound, chat: Chat, number: int, most: int | None) -> list[ShownSample]:
    """The chosen and the rejected answer of a pair, whatever is wrong with it."""
    place = found.place(number, "")
    faults = [one for one in found.matched.faults if one.place == number]
    said = tuple(f"{one.code}: {one.why}" for one in faults)
    answers = (found.table.chosen[number], found.table.rejected[number])
    shown = []
    for part, answer in zip(("chosen", "rejected"), answers, strict=True):
        one = found.pairs.answers.at(found.split, int(answer))
        sample = shown_conversation(one, place, chat, most)
        shown.append(replace(sample, part=part, faults=said))
    return shown
