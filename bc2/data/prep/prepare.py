"""Raw text to a corpus: read, drop exact duplicates, split off held-out documents, write.

After Baichuan 2 §2.1 (arXiv 2309.10305), whose funnel begins with exact deduplication.
The same input and settings give the same bytes out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bc2.console import Progress
from bc2.data import environment
from bc2.data.config import CorpusConfig, SourceConfig
from bc2.data.corpus import FACTS, PartWriter, clear_directory
from bc2.data.documents import Document, Drops
from bc2.data.inputs import hub_name, source_files
from bc2.data.readers import read_source
from bc2.errors import DataError, from_os_error
from bc2.files import write_durably

#: Raised when the same input and settings give another corpus.
VERSION = 1

#: Progress is told about once so many bytes.
_STRIDE = 1 << 20


def prepare(config: CorpusConfig, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Make a corpus in `out`.

    Of documents with the same text (SHA-256, 128 bits of it) the first survives, by source
    as listed, file name and row. A document is held out if the hash of its text says so, so
    that copies fall on one side whatever their source. Memory: two row groups of 4 MiB of
    text, the longest document, and about 100 bytes for each distinct document.

    Args:
        out: an empty or missing directory; left so if anything fails.
        progress: told the bytes of text read.

    Returns:
        The contents of ``corpus.json``: by source what was read, dropped (by reason) and
        written, with licence and origin; and totals.

    Raises:
        DataError: nothing to read, malformed rows, or nothing left.
        ResourceError: the disk is full.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError("the output directory is not empty", where=str(out), todo="name another")
    made_out = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        seen: set[bytes] = set()
        sources = [_source(config, source, out, seen, progress) for source in config.sources]
        facts = _facts(config, sources)
        _check(config, facts)
        text = json.dumps(facts, ensure_ascii=False, indent=1) + "\n"
        write_durably(out / FACTS, text.encode())
    except OSError as error:
        clear_directory(out, itself=made_out)
        raise from_os_error(error, "writing the corpus") from error
    except BaseException:
        clear_directory(out, itself=made_out)
        raise
    return facts


def _source(
    config: CorpusConfig,
    source: SourceConfig,
    out: Path,
    seen: set[bytes],
    progress: Progress | None,
) -> dict[str, Any]:
    drops = Drops(source.name, config.malformed)
    documents = size_read = told = 0
    with (
        PartWriter(out, "train", source.name, config.part_bytes) as train,
        PartWriter(out, "heldout", source.name, config.part_bytes) as heldout,
    ):
        for document in read_source(source, drops):
            size = len(document.text.encode())
            documents += 1
            size_read += size
            if _keep(document, size, config.min_characters, seen, drops):
                held = is_held_out(document.id, config.heldout_fraction)
                (heldout if held else train).add(document, size)
            if progress is not None and size_read - told >= _STRIDE:
                progress(size_read - told, source.name)
                told = size_read
    if progress is not None:
        progress(size_read - told, source.name)
    if not documents and not drops.documents:
        raise DataError(
            f"source {source.name!r} has no documents",
            where=source.path or source.hf or source.environment,
            todo="give it text, or take it out of the recipe",
        )
    return {
        "name": source.name,
        **_provenance(source),
        "read": {"documents": documents, "bytes": size_read},
        "drops": drops.facts(),
        "train": train.facts(),
        "heldout": heldout.facts(),
    }


def _keep(
    document: Document, size: int, min_characters: int, seen: set[bytes], drops: Drops
) -> bool:
    if len(document.text) < min_characters:
        drops.drop("too_short", size)
        return False
    key = bytes.fromhex(document.id)
    if key in seen:
        drops.drop("duplicate", size)
        return False
    seen.add(key)
    return True


def is_held_out(document_id: str, fraction: float) -> bool:
    """Whether a text belongs to the held-out side: the low 64 bits of its id, as a share."""
    return int(document_id[16:], 16) < fraction * 2.0**64


def _provenance(source: SourceConfig) -> dict[str, Any]:
    """lang, licence and origin of a source."""
    if source.environment is not None:
        text = environment.TEXTS[source.environment]
        origin = {"environment": source.environment, **text.origin()._asdict()}
        return {
            "lang": source.lang or text.lang,
            "licence": source.licence or text.licence,
            "origin": origin,
        }
    if source.hf is not None:
        hub = {"hf": hub_name(source.hf), "config": source.hf_config, "split": source.split}
        return {
            "lang": source.lang,
            "licence": source.licence,
            "origin": {**hub, "revision": source.revision},
        }
    # Where the files lie is the recipe's business: equal contents, equal corpus.
    origin = {"files": len(source_files(source))}
    return {"lang": source.lang, "licence": source.licence, "origin": origin}


def _facts(config: CorpusConfig, sources: list[dict[str, Any]]) -> dict[str, Any]:
    def total(side: str, unit: str) -> int:
        return sum(int(source[side][unit]) for source in sources)

    units = ("documents", "bytes", "characters")
    return {
        "version": VERSION,
        "heldout_fraction": config.heldout_fraction,
        "read": {unit: total("read", unit) for unit in ("documents", "bytes")},
        "train": {unit: total("train", unit) for unit in units},
        "heldout": {unit: total("heldout", unit) for unit in units},
        "sources": sources,
    }


def _check(config: CorpusConfig, facts: dict[str, Any]) -> None:
    if not facts["train"]["documents"] and not facts["heldout"]["documents"]:
        lost = {name: n for source in facts["sources"] for name, n in source["drops"].items()}
        reasons = ", ".join(lost) or "no reason"
        raise DataError(
            f"every document was dropped ({reasons})",
            todo="look at corpus.min_characters, the sources and their text_field",
        )
    if not facts["train"]["documents"]:
        raise DataError(
            "no document is left for training: all are held out",
            todo="lower corpus.heldout_fraction or give more documents",
        )
    if config.heldout_fraction > 0 and not facts["heldout"]["documents"]:
        count = facts["train"]["documents"]
        raise DataError(
            f"no document is held out: {config.heldout_fraction:g} of {count:,} came to none",
            todo="raise corpus.heldout_fraction, give more (shorter) documents, or set it to 0",
        )
