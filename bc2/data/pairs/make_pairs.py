"""Pairs made of their sources: read, told what was recognised, split by prompt, written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bc2.console import note, progress
from bc2.data import versions
from bc2.data.chats.bad_chat import SkippedRows
from bc2.data.chats.chats import FACTS as CHAT_FACTS
from bc2.data.chats.make_chats import is_held_out, nonempty, origin, tell_rows
from bc2.data.pairs.pairs import ANSWERS, FACTS, Normalisation, PairWriter
from bc2.data.pairs.pairs_config import PairsConfig, PairSourceConfig
from bc2.data.pairs.read_pairs import PairReading, ReadRow, read_pairs
from bc2.data.pairs.score_scale import ScoreScale, TargetScale
from bc2.data.splits import SPLITS, Split
from bc2.errors import DataError
from bc2.files import canonical_json

Writers = Mapping[Split, PairWriter]


def make_pairs(config: PairsConfig, out: Path) -> dict[str, Any]:
    """Write the payload into the folder `out`, in the order of sources, files and rows.

    Returns:
        The facts to record, which are few: counts, by source and by format.

    Raises:
        DataError: a source that cannot be read, or a split that is empty.
    """
    normalisations: dict[str, Normalisation] = {}
    with ExitStack() as held:
        writers = {split: held.enter_context(PairWriter(out, split)) for split in SPLITS}
        sources = [_write_source(each, config, writers, normalisations) for each in config.sources]
    for writer in writers.values():
        writer.finish(normalisations)
    counts = _counts(writers)
    _check_counts({split: writer.count for split, writer in writers.items()}, config)
    whole: dict[str, Any] = {
        "version": versions.PAIRS,
        "heldout_fraction": config.heldout_fraction,
        "system": config.system,
        **counts,
        "sources": sources,
    }
    (out / FACTS).write_text(canonical_json(whole) + "\n", encoding="utf-8")
    answers = whole | {split: count["answers"] for split, count in counts.items()}
    (out / ANSWERS / CHAT_FACTS).write_text(canonical_json(answers) + "\n", encoding="utf-8")
    return {
        **{split: writer.count for split, writer in writers.items()},
        "prompts": {split: count["prompts"] for split, count in counts.items()},
        "sources": {each["name"]: each["pairs"] for each in sources},
        "formats": {each["name"]: each["formats"] for each in sources},
        **nonempty("skipped", {each["name"]: each["skipped"] for each in sources}),
        **nonempty("unpaired", {each["name"]: each["unpaired"] for each in sources}),
        **nonempty("licences", {each["name"]: each["licence"] for each in sources}),
    }


def _counts(writers: Writers) -> dict[str, dict[str, int]]:
    return {
        split: {"prompts": writer.prompts, "answers": writer.answers, "pairs": writer.count}
        for split, writer in writers.items()
    }


def _write_source(
    source: PairSourceConfig, config: PairsConfig, writers: Writers,
    normalisations: dict[str, Normalisation],
) -> dict[str, Any]:  # fmt: skip
    """Write the pairs of a source, and note how its scores become targets."""
    skipped = SkippedRows(source.name, config.malformed, "pairs")
    found, scale = PairReading(), ScoreScale(source.name, source.score_range)
    targets, held = TargetScale(source.name), 0
    with progress(f"reading {source.name}", None, "comparisons") as bar:
        for row in read_pairs(source, config, found, scale, skipped):
            prompt = row.prompt.digest
            out = is_held_out(prompt, config.heldout_fraction)
            _write_row(row, prompt, writers[SPLITS[out]])
            if not out:
                _add_targets(row, targets)
            held += out * len(row.pairs)
            bar(1)
    _tell(source, found, skipped)
    norm = targets.normalisation(source.normalise, source.score_range)
    if norm is not None:
        normalisations[source.name] = norm
    return {
        "name": source.name,
        "times": source.times,
        **origin(source),
        "rows": found.rows,
        "pairs": found.pairs,
        "heldout": held,
        "formats": dict(sorted(found.formats.items())),
        "ignored": dict(sorted(found.ignored.items())),
        "unpaired": dict(sorted(found.unpaired.items())),
        "skipped": dict(sorted(skipped.counts.items())),
        "skipped_rows": skipped.first,
        "scores": scale.to_json(),
        "normalisation": None if norm is None else {"how": source.normalise, **norm._asdict()},
    }


def _write_row(row: ReadRow, prompt: str, writer: PairWriter) -> None:
    answers = row.comparison.answers
    said = {place: row.answer(place) for place in row.places}
    for chosen, rejected in row.pairs:
        scores = answers[chosen].score, answers[rejected].score
        writer.add(prompt, said[chosen], said[rejected], row.format, scores)


def _add_targets(row: ReadRow, targets: TargetScale) -> None:
    """Count each score once that stands in a pair."""
    for place in row.places:
        score = row.comparison.answers[place].score
        if score is not None:
            targets.add(score)


def _tell(source: PairSourceConfig, found: PairReading, skipped: SkippedRows) -> None:
    tell_rows(source.name, f"{found.pairs:,} pairs of {found.rows:,} comparisons", found, skipped)
    if found.unpaired:
        told = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(found.unpaired.items()))
        note(f"source {source.name}: two answers that make no pair: {told}")


def _check_counts(counts: Mapping[str, int], config: PairsConfig) -> None:
    if not counts["train"]:
        raise DataError(
            "all prompts are held out, and no pairs are left to train on",
            todo="lower pairs.heldout_fraction or give more prompts",
        )
    if config.heldout_fraction > 0 and not counts["heldout"]:
        raise DataError(
            f"no prompt is held out: {config.heldout_fraction:g} of those of {counts['train']:,} "
            "pairs is none",
            todo="raise pairs.heldout_fraction, give more prompts, or set it to 0",
        )
