"""Chats made of their sources: read, told what was recognised, split, written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bc2.console import note, progress
from bc2.data import versions
from bc2.data.chats.bad_chat import SkippedRows
from bc2.data.chats.chats import FACTS, SplitWriter
from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.read_chats import read_chats
from bc2.data.chats.source_rows import SourceReading
from bc2.data.source_config import OriginConfig
from bc2.data.splits import SPLITS, Split
from bc2.errors import DataError
from bc2.files import canonical_json

#: Keys that are named when they are not read.
_NAMED = 8


def make_chats(config: ChatsConfig, out: Path) -> dict[str, Any]:
    """Write the payload into the folder `out`, in the order of sources, files and rows.

    Returns:
        The facts to record, which are few: counts, by source and by format.

    Raises:
        DataError: a source that cannot be read, or a split that is empty.
    """
    with ExitStack() as held:
        writers = {split: held.enter_context(SplitWriter(out, split)) for split in SPLITS}
        sources = [_write_source(source, config, writers) for source in config.sources]
    counts: dict[str, int] = {split: writer.count for split, writer in writers.items()}
    _check_counts(counts, config)
    whole = {
        "version": versions.CHATS,
        "heldout_fraction": config.heldout_fraction,
        "system": config.system,
        **counts,
        "sources": sources,
    }
    (out / FACTS).write_text(canonical_json(whole) + "\n", encoding="utf-8")
    return {
        **counts,
        "sources": {source["name"]: source["rows"] for source in sources},
        "formats": {source["name"]: source["formats"] for source in sources},
        **nonempty("skipped", {each["name"]: each["skipped"] for each in sources}),
        **nonempty("licences", {each["name"]: each["licence"] for each in sources}),
    }


def is_held_out(digest: str, fraction: float) -> bool:
    """Whether a conversation is held out: the first 64 bits of its digest are below `fraction`."""
    return int(digest[:16], 16) < fraction * 2.0**64


def _write_source(
    source: ChatSourceConfig, config: ChatsConfig, writers: Mapping[Split, SplitWriter]
) -> dict[str, Any]:
    found, skipped = SourceReading(), SkippedRows(source.name, config.malformed)
    held = 0
    with progress(f"reading {source.name}", None, "conversations") as bar:
        for chat, form in read_chats(source, config, found, skipped):
            out = is_held_out(chat.digest, config.heldout_fraction)
            writers[SPLITS[out]].add(chat, form)
            held += out
            bar(1)
    tell_rows(source.name, f"{found.rows:,} conversations", found, skipped)
    return {
        "name": source.name,
        "times": source.times,
        **origin(source),
        "rows": found.rows,
        "heldout": held,
        "formats": dict(sorted(found.formats.items())),
        "ignored": dict(sorted(found.ignored.items())),
        "skipped": dict(sorted(skipped.counts.items())),
        "skipped_rows": skipped.first,
    }


def origin(source: OriginConfig) -> dict[str, Any]:
    """Language, licence, and of what is made that it is, and of what."""
    if source.environment is None:
        return {"lang": source.lang, "licence": source.licence, "made": False}
    from bc2.data.chats.instructions import LANG, LICENCE, origins

    lang, licence = source.lang or LANG, source.licence or LICENCE
    return {"lang": lang, "licence": licence, "made": True, "origin": origins()}


def tell_rows(source: str, what: str, found: SourceReading, skipped: SkippedRows) -> None:
    """Say what was read of a source: `what`, its formats, what was not read and not taken."""
    formats = ", ".join(f"{form}: {count:,}" for form, count in found.formats.most_common())
    note(f"source {source}: {what} ({formats})")
    if found.ignored:
        keys = sorted(found.ignored)
        more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
        note(f"source {source}: not read: {', '.join(keys[:_NAMED])}{more}")
    if skipped.counts:
        told = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(skipped.counts.items()))
        note(f"source {source}: skipped rows: {told}; the first is {skipped.first[0]}")


def _check_counts(counts: Mapping[str, int], config: ChatsConfig) -> None:
    if not counts["train"]:
        raise DataError(
            "all conversations are held out, and none are left to train on",
            todo="lower chats.heldout_fraction or give more conversations",
        )
    if config.heldout_fraction > 0 and not counts["heldout"]:
        raise DataError(
            f"no conversation is held out: {config.heldout_fraction:g} of {counts['train']:,} is "
            "none",
            todo="raise chats.heldout_fraction, give more conversations, or set it to 0",
        )


def nonempty(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A fact by source, without those that have nothing to say; no fact if none has."""
    kept = {name: value for name, value in values.items() if value}
    return {key: kept} if kept else {}
