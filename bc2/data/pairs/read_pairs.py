"""Comparisons out of the files of a source, row by row, in a fixed order and bounded memory."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from bc2.data.chats.bad_chat import SkippedRows
from bc2.data.chats.conversation import Conversation
from bc2.data.chats.source_rows import FileFormat, SourceReading, SourceRow, read_source
from bc2.data.inputs import source_files
from bc2.data.pairs.comparison import Comparison, drawn
from bc2.data.pairs.pair_formats import PairForm, read_row, recognise, unread_keys
from bc2.data.pairs.pairs_config import PairsConfig, PairSourceConfig
from bc2.data.pairs.score_scale import ScoreScale
from bc2.errors import DataError
from bc2.tokenizer.chat import Message


@dataclass(frozen=True)
class ReadRow:
    """What a row compares, and which of its pairs are taken."""

    comparison: Comparison
    pairs: tuple[tuple[int, int], ...]
    """Places of its answers, the better one first."""
    format: str
    """The format of the row, or "made"."""
    source: str
    file: str
    row: int

    @property
    def places(self) -> list[int]:
        """Of the answers that stand in a pair, in order."""
        return sorted({place for pair in self.pairs for place in pair})

    @property
    def prompt(self) -> Conversation:
        """The prompt alone."""
        return self._conversation(self.comparison.prompt)

    def answer(self, place: int) -> Conversation:
        """An answer after its prompt."""
        return self._conversation(
            [*self.comparison.prompt, *self.comparison.answers[place].messages]
        )

    def _conversation(self, messages: list[Message]) -> Conversation:
        return Conversation(tuple(messages), self.source, self.file, self.row)


@dataclass
class PairReading(SourceReading):
    """What was found in a source of comparisons."""

    pairs: int = 0
    unpaired: Counter[str] = field(default_factory=Counter)
    """How many twos of answers make no pair, by reason; "not drawn": `max_pairs` left them out."""


def read_pairs(
    source: PairSourceConfig, config: PairsConfig, found: PairReading, scale: ScoreScale,
    skipped: SkippedRows,
) -> Iterator[ReadRow]:  # fmt: skip
    """The comparisons of a source, up to its ``max_rows``, with the section's `system` text.

    Args:
        found, scale, skipped: are added to.

    Raises:
        DataError: nothing to read, a damaged file, a malformed row that stops the run, or scores
            on two scales.
    """
    for row in _rows(source, config, found, scale, skipped):
        found.rows += 1
        found.pairs += len(row.pairs)
        found.formats[row.format] += 1
        yield row
    skipped.check(found.rows, config.max_malformed)
    scale.check_one()
    if not found.pairs:
        bad = f": {skipped.counts.total():,} rows were skipped" if skipped.counts else ""
        raise DataError(
            f"source {source.name!r} has no pairs{bad}" + _reasons(found.unpaired),
            where=", ".join(skipped.first[:3]) or source.path or source.hf,
            todo="check its path, format and min_gap",
        )


def _reasons(unpaired: Counter[str]) -> str:
    told = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(unpaired.items()))
    return f"; answers that make none: {told}" if told else ""


def _rows(
    source: PairSourceConfig, config: PairsConfig, found: PairReading, scale: ScoreScale,
    skipped: SkippedRows,
) -> Iterator[ReadRow]:  # fmt: skip
    if source.environment is not None:
        yield from itertools.islice(_made(source, config), source.max_rows)
        return

    def reader_of(name: str) -> Callable[[SourceRow], ReadRow]:
        stated = None if source.format == "auto" else source.format
        form_of = FileFormat[PairForm](stated, recognise)

        def read(row: SourceRow) -> ReadRow:
            form = form_of.of(row)
            comparison = _after_system(read_row(row.value, form), config.system)
            scores = [each.score for each in comparison.answers if each.score is not None]
            scale.check(scores)
            unpaired: Counter[str] = Counter()
            pairs = comparison.pairs(source.min_gap, unpaired)
            # Nothing is counted of a row that is malformed.
            found.ignored.update(unread_keys(row.value))
            found.unpaired.update(unpaired)
            scale.add(scores, f"{name}, row {row.number:,}")
            taken = ReadRow(comparison, (), form, source.name, name, row.number)
            return _with_pairs(taken, pairs, source, config, found)

        return read

    yield from read_source(source, source.max_rows, skipped, reader_of)


def _made(source: PairSourceConfig, config: PairsConfig) -> Iterator[ReadRow]:
    from bc2.data.pairs.endings import made_endings

    for comparison, chat in made_endings(source_files(source), source.name, config.seed):
        after = _after_system(comparison, config.system)
        yield ReadRow(after, ((0, 1),), "made", source.name, chat.file, chat.row)


def _with_pairs(
    row: ReadRow, pairs: list[tuple[int, int]], source: PairSourceConfig, config: PairsConfig,
    found: PairReading,
) -> ReadRow:  # fmt: skip
    taken = drawn(pairs, source.max_pairs, f"{config.seed} {row.prompt.digest}")
    if len(taken) < len(pairs):
        found.unpaired["not drawn"] += len(pairs) - len(taken)
    return replace(row, pairs=tuple(taken))


def _after_system(comparison: Comparison, system: str | None) -> Comparison:
    if system is None or comparison.prompt[0]["role"] == "system":
        return comparison
    first = {"role": "system", "content": system}
    return replace(comparison, prompt=[first, *comparison.prompt])
