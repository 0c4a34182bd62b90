"""What a corpus or a set of token shards holds: counted, by source and by language.

For every corpus, with a funnel or without: what `corpus.json` does not say is counted from the
Parquet parts, a row group at a time; lengths of token shards from where EOS stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.console import Progress
from bc2.data.corpus import corpus_facts, corpus_parts
from bc2.data.prep.funnel import FUNNEL, Funnel, Histogram
from bc2.data.prep.stages.decontamination.matches import CONTAMINATION
from bc2.data.prep.write_corpus import LENGTH_EDGES
from bc2.data.shards import TokenShards
from bc2.data.splits import SPLITS
from bc2.errors import IntegrityError, UsageError
from bc2.report.funnel_rows import NOT_STATED, as_json, language
from bc2.report.timings import Timing
from bc2.report.timings import timings as timings_of
from bc2.streams import reading

#: Tokens of a shard that are looked at together.
_CHUNK = 1 << 22

Counts = npt.NDArray[np.int64]


@dataclass
class Tally:
    """Documents, UTF-8 bytes of their text, and tokens with EOS (None: never tokenized)."""

    documents: int = 0
    bytes: int = 0
    tokens: int | None = None

    def add(self, documents: int, size: int, tokens: int | None = None) -> None:
        """Count more."""
        self.documents += documents
        self.bytes += size
        if tokens is not None:
            self.tokens = (self.tokens or 0) + tokens

    @property
    def bytes_per_token(self) -> float | None:
        return self.bytes / self.tokens if self.tokens else None


@dataclass
class SourceDescription:
    """One source, or one stratum of it: what it holds by split, and where it is from."""

    name: str
    source: str
    """The recipe's source that it is a stratum of; its own name where there are no strata."""
    lang: str | None
    licence: str | None
    origin: Mapping[str, Any] | None
    weight: int | None = None
    """How much of training draws from it, of the sum of all; None where the corpus says nothing."""
    splits: dict[str, Tally] = field(default_factory=dict)


@dataclass
class Description:
    """What an artifact holds."""

    kind: str
    sources: list[SourceDescription]
    languages: dict[str, Tally]
    """Both splits together; `NOT_STATED` where no source says."""
    lengths: dict[str, Histogram]
    """Documents by length, by language."""
    length_unit: str
    """"characters" (Unicode) of a corpus, "tokens" (EOS included) of shards."""
    funnel: Funnel | None = None
    contamination: Path | None = None
    """The file of the matches with benchmarks, where they were looked for."""
    timings: list[Timing] = field(default_factory=list)
    """How long the corpus took, by step; nothing where nobody recorded it."""

    def total(self, split: str | None = None) -> Tally:
        """All sources together, in one split or in both."""
        found = Tally()
        for source in self.sources:
            for name, tally in source.splits.items():
                if split in (None, name):
                    found.add(tally.documents, tally.bytes, tally.tokens)
        return found

    @property
    def unlicensed(self) -> list[str]:
        """Sources for which no licence is recorded."""
        return list(dict.fromkeys(one.source for one in self.sources if not one.licence))

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON data; of the funnel the numbers, not the examples."""
        return {
            "kind": self.kind,
            "total": _tally_json(self.total()),
            "splits": {split: _tally_json(self.total(split)) for split in SPLITS},
            "sources": [_source_json(source) for source in self.sources],
            "languages": {lang: _tally_json(one) for lang, one in self.languages.items()},
            "lengths": {
                "unit": self.length_unit,
                "by_language": {lang: _lengths_json(one) for lang, one in self.lengths.items()},
            },
            "unlicensed": self.unlicensed,
            "funnel": as_json(self.funnel) if self.funnel else None,
            "timings": [one.as_json() for one in self.timings],
        }


def describe(
    path: Path, kind: str, *, corpus: Path | None = None, progress: Progress | None = None,
    timings: Iterable[Mapping[str, Any]] = (),
) -> Description:  # fmt: skip
    """Count what is in an artifact's directory.

    Reads the text of a corpus once (unless its funnel has the lengths), and the ids of token
    shards once; holds a row group, or 4 Mi ids.

    Args:
        kind: "corpus" or "tokens".
        corpus: the corpus that shards were made of, which knows languages and licences; without
            it they are not stated.
        progress: told the bytes of text, or of ids, gone through.
        timings: what `bc2.data.prep.step_timings` said when the corpus was made.

    Raises:
        UsageError: another kind.
        DataError: the directory holds no such thing, or a damaged one.
        IntegrityError: what is counted is not what the index says.
    """
    if kind == "corpus":
        found = _corpus(path, progress)
    elif kind == "tokens":
        found = _tokens(path, corpus, progress)
    else:
        raise UsageError(
            f"a {kind} has no documents to report on", todo="name a corpus or token shards"
        )
    found.timings = timings_of(timings)
    _add_what_stages_said(found, path if kind == "corpus" else corpus)
    return found


def _add_what_stages_said(found: Description, corpus: Path | None) -> None:
    """The funnel with the stages' seconds, and where the matches with benchmarks are."""
    if corpus is None or not (corpus / FUNNEL).exists():
        return
    funnel = found.funnel or Funnel.open(corpus / FUNNEL)
    found.funnel = funnel.timed({one.step: one.seconds for one in found.timings})
    if (corpus / CONTAMINATION).exists():
        found.contamination = corpus / CONTAMINATION


def _tally_json(one: Tally) -> dict[str, Any]:
    return {**asdict(one), "bytes_per_token": one.bytes_per_token}


def _lengths_json(one: Histogram) -> dict[str, Any]:
    return {"edges": [float(edge) for edge in one.edges], "documents": one.documents}


def _source_json(one: SourceDescription) -> dict[str, Any]:
    splits = {split: _tally_json(tally) for split, tally in one.splits.items()}
    return {**asdict(one), "splits": splits}


def _sources(facts: Mapping[str, Any]) -> dict[str, SourceDescription]:
    """The sources of a `corpus.json`, nothing counted."""
    weights = facts.get("weights") or {}
    return {
        entry["name"]: SourceDescription(
            entry["name"], entry.get("source", entry["name"]), entry.get("lang"),
            entry.get("licence"), entry.get("origin"), weights.get(entry["name"]),
        )
        for entry in facts["sources"]
    }  # fmt: skip


# -- a corpus ------------------------------------------------------------------------------


def _corpus(path: Path, progress: Progress | None) -> Description:
    sources = _sources(corpus_facts(path))
    for part in corpus_parts(path):
        sources[part.source].splits.setdefault(part.split, Tally()).add(part.documents, part.bytes)
    funnel = Funnel.open(path / FUNNEL) if (path / FUNNEL).exists() else None
    if funnel is not None and funnel.lengths and funnel.stages:
        languages: dict[str, Tally] = {}
        for group in funnel.stages[-1].after:
            one = languages.setdefault(language(group.lang), Tally())
            one.add(group.documents, group.bytes)
        lengths = {language(lang): one for lang, one in funnel.lengths.items()}
    else:
        languages, lengths = _count(path, progress)
    found = Description("corpus", list(sources.values()), languages, lengths, "characters", funnel)
    counted = sum(one.documents for one in languages.values())
    _compare(path, found.total().documents, counted)
    return found


def _count(path: Path, progress: Progress | None) -> tuple[dict[str, Tally], dict[str, Histogram]]:
    """Languages and lengths of documents, from the parts."""
    languages: dict[str, Tally] = {}
    counts: dict[str, Counts] = {}
    for part in corpus_parts(path):
        for lang, characters, size in _groups(path / part.file):
            languages.setdefault(lang, Tally()).add(len(characters), size)
            _tally_lengths(counts, lang, characters)
        if progress is not None:
            progress(part.bytes, part.source)
    return dict(sorted(languages.items())), _histograms(counts)


def _groups(part: Path) -> Iterator[tuple[str, Counts, int]]:
    """Each row group by language: (language, characters of each document, UTF-8 bytes of all)."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with reading(part):
        try:
            with pq.ParquetFile(part, pre_buffer=False, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=["text", "lang"])
                    langs = pc.fill_null(rows["lang"].cast(pa.string()), NOT_STATED)
                    for lang in sorted(pc.unique(langs).to_pylist()):
                        texts = rows["text"].filter(pc.equal(langs, lang))
                        characters = pc.utf8_length(texts).to_numpy().astype(np.int64)
                        size = pc.sum(pc.binary_length(texts).cast(pa.int64())).as_py()
                        yield lang, characters, size
        except pa.ArrowException as error:
            raise EOFError(str(error)) from error


# -- token shards --------------------------------------------------------------------------


def _tokens(path: Path, corpus: Path | None, progress: Progress | None) -> Description:
    shards = TokenShards.open(path)
    known = _sources(corpus_facts(corpus)) if corpus is not None else {}
    sources: dict[str, SourceDescription] = {}
    languages: dict[str, Tally] = {}
    counts: dict[str, Counts] = {}
    weights = shards.weights or {}
    for split in SPLITS:
        for name in shards.sources(split):
            unknown = SourceDescription(name, shards.source_of(name), None, None, None)
            source = sources.setdefault(name, known.get(name, unknown))
            source.weight = weights.get(name, source.weight)
            amounts = (
                shards.num_documents(split, name), shards.num_bytes(split, name),
                shards.num_tokens(split, name),
            )  # fmt: skip
            source.splits[split] = Tally(*amounts)
            lang = language(source.lang)
            languages.setdefault(lang, Tally()).add(*amounts)
            for lengths in _document_lengths(shards, split, name, progress):
                _tally_lengths(counts, lang, lengths)
    found = Description(
        "tokens", list(sources.values()), dict(sorted(languages.items())), _histograms(counts),
        "tokens",
    )  # fmt: skip
    counted = sum(sum(one.documents) for one in found.lengths.values())
    _compare(path, found.total().documents, counted)
    return found


def _document_lengths(
    shards: TokenShards, split: str, source: str, progress: Progress | None
) -> Iterator[Counts]:
    """Tokens of each document of a source, EOS included, a chunk of ids at a time."""
    whole, begin = shards.num_tokens(split, source), 0
    for start in range(0, whole, _CHUNK):
        ids = shards.window(split, source, start, min(_CHUNK, whole - start))
        ends = start + 1 + np.flatnonzero(ids == shards.eos_id).astype(np.int64)
        yield np.diff(ends, prepend=begin)
        begin = int(ends[-1]) if len(ends) else begin
        if progress is not None:
            progress(ids.nbytes, source)


# -- lengths -------------------------------------------------------------------------------


def _tally_lengths(counts: dict[str, Counts], lang: str, lengths: Counts) -> None:
    if len(lengths):
        found = np.histogram(lengths, (*LENGTH_EDGES, np.inf))[0].astype(np.int64)
        counts[lang] = counts.get(lang, np.zeros_like(found)) + found


def _histograms(counts: Mapping[str, Counts]) -> dict[str, Histogram]:
    return {
        lang: Histogram(edges=LENGTH_EDGES, documents=tuple(documents.tolist()))
        for lang, documents in sorted(counts.items())
    }


def _compare(path: Path, stated: int, counted: int) -> None:
    if stated != counted:
        raise IntegrityError(
            f"there are {counted:,} documents, not {stated:,} as the index says",
            where=str(path),
            todo="`bc2 registry verify` finds what is damaged; make it again",
        )
