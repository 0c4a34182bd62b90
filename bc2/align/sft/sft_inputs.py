"""The samples, layout and schedule of a fine-tuning run, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bc2.align.samples.packing import repeated
from bc2.align.samples.render_settings import RenderSettings
from bc2.align.samples.rendered_chats import ChatSource, rendered_chats
from bc2.align.samples.row_stream import total_rows
from bc2.align.samples.sample_store import Samples
from bc2.align.samples.speech import chat_source, check_speaks, check_vocabulary, pad_id
from bc2.align.sft.packed_conversations import PackedSamples
from bc2.align.sft.sft_config import SftConfig
from bc2.console import progress
from bc2.data.chats.chats import Chats
from bc2.data.chats.conversation import Conversation
from bc2.data.splits import Split
from bc2.errors import DataError, RecipeError
from bc2.train.algorithm import INIT
from bc2.train.run import Run
from bc2.train.schedule import Schedule

#: Rows that an error names, of those it is about.
_NAMED = 5

#: The most conversations that an epoch reads: 8 bytes are held of each.
_MOST_READ = 1 << 30


@dataclass(frozen=True)
class SftInputs:
    """The data of a run."""

    source: ChatSource
    chats: Chats
    rows: PackedSamples
    heldout: PackedSamples | None
    """The held-out conversations that are measured; None: there are none, or none is asked for."""
    heldout_lines: tuple[str, ...]
    """What of the held-out ones is not measured, for a person."""
    schedule: Schedule
    total_rows: int | None
    """Rows of the whole run, where its length is in epochs: the last step has what is left."""

    @property
    def sources(self) -> tuple[str, ...]:
        return self.chats.sources

    def prompts(self, count: int) -> list[Conversation]:
        """Held-out conversations, spread over them, whose first answer the model is to write."""
        if self.heldout is None:
            return []
        index = self.heldout.samples.index[np.unique(self.heldout.entries)]
        chosen = index[
            np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))
        ]
        return [self.chats.at("heldout", int(number)) for number in chosen]

    def extent(self, config: SftConfig) -> str:
        """What a step reads and how much that is in all, for a person."""
        total = self.schedule.total * config.batch_sequences
        total = total if self.total_rows is None else self.total_rows
        epochs = total / self.rows.first_row(1)
        return (
            f"{config.batch_sequences:,} rows of {config.sequence_length:,} tokens = {total:,} "
            f"rows, {epochs:.2f} epochs of {len(self.rows.entries):,} conversations"
        )

    @property
    def lines(self) -> list[str]:
        """What the samples are, for a person."""
        samples, rows = self.rows.samples, self.rows
        trained = int(samples.trained.sum(dtype=np.int64))
        tokens = int(samples.lengths.sum(dtype=np.int64))
        lines = [
            f"{len(samples):,} conversations of {tokens:,} tokens, {trained / tokens:.1%} of them "
            f"trained, in {rows.first_row(1):,} rows that are {rows.filled():.2%} full"
        ]
        return [*lines, *_left_out(samples), *self.heldout_lines]


def _left_out(samples: Samples) -> list[str]:
    """What samples lack of their conversations, for a person."""
    left_out = {**samples.fault_counts, "too long": len(samples.too_long)}
    lines = [f"left out: {n:,} ({code})" for code, n in left_out.items() if n]
    if samples.cut:
        lines.append(f"{len(samples.cut):,} keep only the first rounds that fit")
    return lines


def open_sft_inputs(run: Run) -> SftInputs:
    """Render the conversations of a run, and work out its schedule.

    Raises:
        DataError: conversations are faulty, too long, or none is left; there is no chat layout.
        RecipeError: settings that do not fit the data.
        RefError: the model to begin with is none that speaks.
        IntegrityError: a file is not what was published.
    """
    config, artifact = run.config, run.inputs.one("chats")
    assert isinstance(config, SftConfig)
    base = run.inputs.one(INIT.name)
    check_speaks(base, f"{config.section}.{INIT.name}")
    check_vocabulary(base, run)
    source = chat_source(artifact.path, artifact, base, config.chat_layout, config.section)
    chats = Chats.open(artifact.path)
    samples = _rendered(source, chats, "train", config)
    rows = _packed(samples, chats, "train", config, pad_id(source))
    if not len(rows.entries):
        raise RecipeError(
            "no conversation is read: every source has a `times` below 1, and none was drawn",
            where="[chats]",
            todo="raise chats.sources.times",
        )
    total = total_rows(config, rows)
    schedule = Schedule.of(
        config,
        epoch_tokens=rows.first_row(1) * config.sequence_length,
        total_tokens=None if total is None else total * config.sequence_length,
    )
    heldout, lines = _heldout(source, chats, config)
    return SftInputs(source, chats, rows, heldout, lines, schedule, total)


def render_settings(config: SftConfig) -> RenderSettings:
    """What of the settings samples depend on."""
    return RenderSettings(config.sequence_length, config.train_on, config.too_long)


def _rendered(source: ChatSource, chats: Chats, split: Split, config: SftConfig) -> Samples:
    """The samples of a split, of which nothing is left out that must not be.

    Raises:
        DataError: rows are faulty or too long, and the recipe says to stop then; none is left.
    """
    with progress("chats", chats.count(split), "conversations") as bar:
        samples = rendered_chats(source, split, render_settings(config), progress=bar)
    if samples.faults and config.faulty == "stop":
        raise DataError(
            f"{len(samples.faults):,} conversations cannot be trained on: "
            + ", ".join(f"{n:,} {code}" for code, n in samples.fault_counts.items()),
            where=_places(chats, split, [(one.place, one.why) for one in samples.faults]),
            todo="mend them (`bc2 data lint` shows them all), or leave them out: "
            'sft.faulty = "drop"',
        )
    if samples.too_long and config.too_long == "stop":
        raise DataError(
            f"{len(samples.too_long):,} of {chats.count(split):,} conversations are longer than "
            f"sft.sequence_length = {config.sequence_length:,} tokens",
            where=_places(chats, split, [(i, f"{n:,} tokens") for i, n in samples.too_long]),
            todo='raise sequence_length, or set sft.too_long = "rounds" (keep the first rounds '
            'that fit) or "drop"',
        )
    if split == "train" and not len(samples):
        raise DataError("no conversation is left to train on", where=str(source.folder))
    return samples


def _places(chats: Chats, split: Split, rows: Sequence[tuple[int, str]]) -> str:
    named = [f"{chats.at(split, index).where}: {why}" for index, why in rows[:_NAMED]]
    more = f"; and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    return "; ".join(named) + more


def _packed(
    samples: Samples, chats: Chats, split: Split, config: SftConfig, pad_id: int
) -> PackedSamples:
    source_ids = chats.source_ids(split)[samples.index]
    times = np.array(chats.times)[source_ids] if split == "train" else np.ones(len(samples))
    if times.sum() > _MOST_READ:
        raise RecipeError(
            f"an epoch reads {times.sum():,.0f} conversations, of {len(samples):,}",
            where="[chats]",
            todo=f"lower chats.sources.times: {_MOST_READ:,} in all are the most",
        )
    return PackedSamples(
        repeated(times, config.seed),
        source_ids,
        config.sequence_length,
        config.seed,
        pad_id,
        samples,
        by_sample=config.mean == "samples",
    )


def _heldout(
    source: ChatSource, chats: Chats, config: SftConfig
) -> tuple[PackedSamples | None, tuple[str, ...]]:
    """Held-out conversations, spread over them all; and what of them is left out."""
    if not config.eval_samples:
        return None, ()
    samples = _rendered(source, chats, "heldout", config)
    lines = tuple(f"held-out ones: {line}" for line in _left_out(samples))
    if not len(samples):
        return None, (*lines, "no conversation is held out: there is no held-out loss")
    rows = replace(_packed(samples, chats, "heldout", config, pad_id(source)), by_sample=True)
    most = min(config.eval_samples, len(samples))
    chosen = np.unique(np.linspace(0, len(samples) - 1, most).astype(np.int64))
    return replace(rows, entries=chosen, seed=0, _epochs={}, _starts=[0]), lines
