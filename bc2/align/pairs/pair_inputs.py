"""The pairs, layout and schedule of a run on pairs, checked before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bc2.align.pairs.packed_pairs import PackedPairs
from bc2.align.pairs.pair_samples import PairSamples
from bc2.align.pairs.preference_config import PreferenceConfig
from bc2.align.samples.packing import repeated
from bc2.align.samples.render_settings import RenderSettings
from bc2.align.samples.rendered_chats import ChatSource, rendered_chats
from bc2.align.samples.row_stream import total_rows
from bc2.align.samples.speech import chat_source, check_vocabulary, pad_id
from bc2.console import progress
from bc2.data.chats.conversation import Conversation
from bc2.data.pairs.pairs import ANSWERS, Pairs
from bc2.data.splits import Split
from bc2.errors import DataError, RecipeError
from bc2.train.algorithm import INIT
from bc2.train.run import Run
from bc2.train.schedule import Schedule

#: Pairs that an error names, of those it is about.
_NAMED = 5

#: The most pairs that an epoch reads: 8 bytes are held of each.
_MOST_READ = 1 << 30


@dataclass(frozen=True)
class PairInputs:
    """The data of a run on pairs."""

    source: ChatSource
    """Of the answers."""
    pairs: Pairs
    rows: PackedPairs
    heldout: PackedPairs | None
    """The held-out pairs that are measured; None: there are none, or none is asked for."""
    schedule: Schedule
    total_rows: int | None
    """Rows of the whole run, where its length is in epochs: the last step has what is left."""

    @property
    def sources(self) -> tuple[str, ...]:
        return self.pairs.sources

    def prompts(self, count: int) -> list[Conversation]:
        """Held-out conversations, spread over the pairs, of which the answer is left to a model."""
        if self.heldout is None:
            return []
        table = self.heldout.pairs.table
        _, first = np.unique(table.prompt, return_index=True)
        some = first[np.unique(np.linspace(0, len(first) - 1, min(count, len(first))).astype(int))]
        return [self.pairs.answers.at("heldout", int(at)) for at in table.chosen[some]]

    def extent(self, config: PreferenceConfig) -> str:
        """What a step reads and how much that is in all, for a person."""
        total = self.total_rows or self.schedule.total * config.batch_sequences
        epochs = total / self.rows.first_row(1)
        each = len(self.rows.entries) / self.rows.first_row(1) * config.batch_sequences
        return (
            f"{config.batch_sequences:,} rows of {config.sequence_length:,} tokens, about "
            f"{each:.1f} pairs, = {total:,} rows, {epochs:.2f} epochs of "
            f"{len(self.rows.entries):,} pairs"
        )

    @property
    def lines(self) -> list[str]:
        """What the pairs are, for a person."""
        rows = self.rows
        lines = [
            f"{len(rows.pairs):,} pairs of {len(np.unique(rows.pairs.table.prompt)):,} prompts in "
            f"{rows.first_row(1):,} rows that are {rows.filled():.2%} full"
        ]
        lines += _left_out(rows.pairs)
        if self.heldout is None:
            return [*lines, "no pair is held out: nothing is measured beside training"]
        held = self.heldout.pairs
        prompts = len(np.unique(held.table.prompt))
        lines.append(f"held out: {len(held):,} pairs of {prompts:,} prompts")
        return [*lines, *(f"of those held out {line}" for line in _left_out(held))]

    def alike(self) -> Mapping[str, object]:
        """What every rank must have read alike."""
        held = None if self.heldout is None else dict(self.heldout.pairs.samples.crc32)
        return {"answers": dict(self.rows.pairs.samples.crc32), "held-out answers": held}


def _left_out(pairs: PairSamples) -> list[str]:
    counts = Counter(fault.code for fault in pairs.faults)
    left_out = {**dict(counts.most_common()), "too long": len(pairs.too_long)}
    return [f"left out: {n:,} ({code})" for code, n in left_out.items() if n]


def open_pair_inputs(run: Run, *, ends: bool) -> PairInputs:
    """Render the answers of a run's pairs, and work out its schedule.

    Args:
        ends: see `PackedPairs.ends`.

    Raises:
        DataError: pairs are faulty, too long, or none is left; there is no chat layout.
        RecipeError: settings that do not fit the data.
        IntegrityError: a file is not what was published.
    """
    config, artifact, base = run.config, run.inputs.one("pairs"), run.inputs.one(INIT.name)
    assert isinstance(config, PreferenceConfig)
    check_vocabulary(base, run)
    folder = artifact.path / ANSWERS
    source = chat_source(folder, artifact, base, config.chat_layout, config.section)
    pairs = Pairs.open(artifact.path)
    found = checked_pairs(source, pairs, "train", config, ends=ends)
    if not len(found):
        raise DataError("no pair is left to train on", where=str(artifact.path))
    rows = _packed(found, _entries(found, pairs, config), config, pad_id(source), ends)
    total = total_rows(config, rows)
    schedule = Schedule.of(
        config,
        epoch_tokens=rows.first_row(1) * config.sequence_length,
        total_tokens=None if total is None else total * config.sequence_length,
    )
    heldout = _heldout(source, pairs, config, ends)
    return PairInputs(source, pairs, rows, heldout, schedule, total)


def render_settings(config: PreferenceConfig) -> RenderSettings:
    """What of the settings answers as samples depend on: not whether they are read to the end."""
    return RenderSettings(config.sequence_length, "assistant", "stop")


def checked_pairs(
    source: ChatSource, pairs: Pairs, split: Split, config: PreferenceConfig, *, ends: bool
) -> PairSamples:
    """The pairs of a split, of which nothing is left out that must not be.

    Raises:
        DataError: pairs are faulty or too long, and the recipe says to stop then.
    """
    with progress(f"answers, {split}", pairs.answers.count(split), "answers") as bar:
        samples = rendered_chats(source, split, render_settings(config), progress=bar)
    found = PairSamples.of(pairs.table(split), samples, config.sequence_length, ends=ends)
    if found.faults and config.faulty == "stop":
        counts = Counter(fault.code for fault in found.faults)
        raise DataError(
            f"{len({fault.place for fault in found.faults}):,} pairs cannot be trained on: "
            + ", ".join(f"{n:,} {code}" for code, n in counts.most_common()),
            where=_places(pairs, split, [(one.place, one.why) for one in found.faults]),
            todo="mend them (`bc2 data lint` shows them all), or leave them out: "
            f'{config.section}.faulty = "drop"',
        )
    if found.too_long and config.too_long == "stop":
        raise DataError(
            f"{len(found.too_long):,} of {pairs.count(split):,} pairs do not fit into a row of "
            f"{config.section}.sequence_length = {config.sequence_length:,} tokens",
            where=_places(pairs, split, [(i, f"{n:,} tokens") for i, n in found.too_long]),
            todo=f'raise sequence_length, or leave them out: {config.section}.too_long = "drop"',
        )
    return found


def _places(pairs: Pairs, split: Split, rows: Sequence[tuple[int, str]]) -> str:
    some = rows[:_NAMED]
    places = pairs.places(split, [index for index, _ in some])
    named = [f"{place}: {why}" for place, (_, why) in zip(places, some, strict=True)]
    more = f"; and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    return "; ".join(named) + more


def _entries(found: PairSamples, pairs: Pairs, config: PreferenceConfig) -> npt.NDArray[np.int64]:
    """The pairs that an epoch reads."""
    times = np.array(pairs.times)[found.table.source_ids]
    if times.sum() > _MOST_READ:
        raise RecipeError(
            f"an epoch reads {times.sum():,.0f} pairs, of {len(found):,}",
            where="[pairs]",
            todo=f"lower pairs.sources.times: {_MOST_READ:,} in all are the most",
        )
    entries = repeated(times, config.seed)
    if not len(entries):
        raise RecipeError(
            "no pair is read: every source has a `times` below 1, and none was drawn",
            where="[pairs]",
            todo="raise pairs.sources.times",
        )
    return entries


def _packed(
    found: PairSamples, entries: npt.NDArray[np.int64], config: PreferenceConfig, pad: int,
    ends: bool,
) -> PackedPairs:  # fmt: skip
    return PackedPairs(
        entries, found.table.source_ids, config.sequence_length, config.seed, pad, found, ends
    )


def _heldout(
    source: ChatSource, pairs: Pairs, config: PreferenceConfig, ends: bool
) -> PackedPairs | None:
    """Held-out pairs, spread over them all."""
    if not config.eval_pairs or not pairs.count("heldout"):
        return None
    found = checked_pairs(source, pairs, "heldout", config, ends=ends)
    if not len(found):
        return None
    most = min(config.eval_pairs, len(found))
    chosen = np.unique(np.linspace(0, len(found) - 1, most).astype(np.int64))
    return _packed(found, chosen, config, pad_id(source), ends)


def known_sources(pairs: Pairs, names: Iterable[str], where: str) -> None:
    """Raises: RecipeError if one of `names` is none of the sources."""
    for name in names:
        if name not in pairs.sources:
            raise RecipeError(
                f"no source of the pairs is called {name!r}",
                where=where,
                todo=f"sources: {', '.join(pairs.sources)}",
            )
