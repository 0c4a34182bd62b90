"""Settings of the funnel's stages: the tables below [corpus]. A stage without its table is off."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from bc2.recipe import UNKEYED, Settings

#: Personal data that `bc2.data.prep.text.personal_data` finds.
PersonalKind = Literal["email", "phone", "id_card", "ssn", "ip", "bank_card", "key"]


class NormaliseSettings(Settings):
    """[corpus.normalise]: one form of the same text.

    Always: CRLF and CR become LF; control characters other than tab and LF, and U+FEFF, go; a
    document with nothing but white space left is dropped (`empty`).
    """

    nfc: bool = False
    """Unicode normalisation form C. Off, since it also turns the compatibility ideographs of
    old books into other characters."""

    blank_lines: int | Literal[False] = Field(False, ge=0)
    """At most so many blank lines in a row; ``false`` leaves them."""

    strip_lines: bool = False
    """Take away white space at the ends of lines."""


class QualitySettings(Settings):
    """[corpus.quality]: a score for every sentence; low ones are cut."""

    scorer: str = Field("rules", min_length=1, json_schema_extra=UNKEYED)
    """``rules``: a formula on a sentence's form (`bc2.data.prep.text.rule_scorer`);
    else the directory of a scorer trained by ``bc2 data train-quality``. Not keyed: the files'
    digests are."""

    languages: tuple[str, ...] = Field(("en", "zh", "unknown"), min_length=1)
    """Languages that are scored; ``unknown`` is a document whose source names none. The others,
    code among them, pass with empty scores."""

    min_sentence: float = Field(0.35, ge=0, le=1)
    """Sentences that score less are cut (`low_sentence`), except in fenced blocks of code or
    mathematics."""

    min_letters: int = Field(12, ge=0)
    """Sentences of fewer letters (an ideograph counts 3) are left: numbers, dates, headings'
    underlines and lone marks say little by themselves and hold a text together."""

    min_document: float = Field(0.5, ge=0, le=1)
    """Documents with a lower mean score, weighted by characters, before anything is cut and
    without fenced blocks, are dropped (`low_quality`)."""

    max_cut: float = Field(0.3, ge=0, le=1)
    """Documents that would lose a larger share of their characters are dropped
    (`low_quality`)."""


class PassagesSettings(Settings):
    """[corpus.passages]: paragraphs and sentences that stand in the corpus before.

    Two passages are the same if they are with white space as one space and case folded; in code,
    if their lines are, but for white space at their ends.
    """

    paragraphs: bool = True
    """Cut paragraphs that stand earlier in the corpus (CCNet, Wenzek et al. 2020, section 3.1)."""

    sentences: bool = True
    """Cut sentences that stand earlier in the corpus (C4 does so with spans of three)."""

    paragraph_bytes: int = Field(120, ge=1)
    """Shorter paragraphs are left alone: UTF-8 bytes of the compared form, in which a Chinese
    character counts 3 and parallel Chinese and English text are about as long."""

    sentence_bytes: int = Field(120, ge=1)
    """Shorter sentences are left alone: UTF-8 bytes of the compared form."""

    paragraph_repeats: int = Field(2, ge=2)
    """Cut only paragraphs that stand at least so many times in the corpus; the first stays."""

    sentence_repeats: int = Field(3, ge=2)
    """The same for sentences. Above 2, since a sentence is lost out of its context: quotations
    and a statute's standard clauses stand twice in good text, notices and menus everywhere."""

    code: bool = False
    """Cut paragraphs (never sentences) in documents with lang "code" too. Off: a file without
    one of its functions no longer runs, so code is compared as whole files only."""

    max_lost: float = Field(0.7, gt=0, le=1)
    """Drop documents that would lose a larger share of their characters (`mostly_duplicate`)."""

    min_left: int = Field(60, ge=0)
    """Drop documents of which a cut would leave fewer UTF-8 bytes (`mostly_duplicate`)."""


class NearSettings(Settings):
    """[corpus.near]: documents that are nearly the same, of which one stays.

    How near two are is the Jaccard similarity of their sets of shingles. MinHash finds
    candidates, exact sets verify them, so the recall is a chance and the precision is 1.
    """

    threshold: float = Field(0.8, gt=0, le=1)
    """Least Jaccard similarity of near-duplicates (0.8: SlimPajama)."""

    recall: float = Field(0.97, gt=0, lt=1)
    """Least chance of finding a pair that is just at the threshold; nearer ones have more.
    The bands follow from it: 16 of 7 hashes for 0.97 at 0.8."""

    hashes: int = Field(112, ge=1, le=1024)
    """MinHash values a document (112: FineWeb, arXiv 2406.17557). More find the same recall
    with fewer candidates in vain, and take time in proportion."""

    shingle: int = Field(5, ge=1, le=32)
    """Words in a shingle (5: FineWeb). A CJK character is a word."""


class EmbeddingSettings(Settings):
    """What gives a document its vector: shared by the tables that compare documents so."""

    model: str | None = Field(None, min_length=1)
    """A sentence-transformers model, by name on the Hugging Face hub or as a folder: its
    embeddings, instead of words. Needs `pip install sentence-transformers`; one text at a time
    on one core, so that what becomes of a document never depends on its neighbours."""


class DenseSettings(EmbeddingSettings):
    """[corpus.dense]: documents whose embeddings are nearly the same, of which one stays.

    How near two are is the cosine of their vectors as they are stored, in 8-bit integers.
    Sign bits find candidates, exact integer products verify them, so the recall is a chance and
    the precision, with respect to that cosine, is 1.
    """

    threshold: float = Field(0.95, gt=0, le=1)
    """Least cosine of near-duplicates. For the embedding of words: a `model` has a scale of its
    own, on which unlike texts may come to 0.8."""

    recall: float = Field(0.97, gt=0, lt=1)
    """Least chance of finding a pair that is just at the threshold; nearer ones have more.
    The bands follow from it: 44 of 23 bits for 0.97 at 0.95."""

    bits: int = Field(1024, ge=1, le=8192)
    """Sign bits a document. More find the same recall with fewer candidates in vain, and take
    time and room in proportion."""

    dimensions: int = Field(256, ge=8, le=4096)
    """Dimensions, and bytes, of the embedding of words; a cosine c is off by about
    (1 - c^2) / sqrt(dimensions), 0.006 at 0.95. A `model` has dimensions of its own."""

    span: int = Field(1000, ge=16)
    """Characters that a `model` is given at once. A document's vector is the mean of its spans',
    by their length, so no part of a long one goes unseen: most models pass over what is beyond
    256 or 512 tokens."""

    min_words: int = Field(20, ge=1)
    """Documents of fewer words are left alone. A CJK character is a word."""

    seed: int = Field(0, ge=0)
    """Seeds the projection of words and the planes whose sides are the sign bits."""


class WordListSettings(Settings):
    """[[corpus.safety.word_lists]]: a file of words, one a line, and when they are too many.

    Words in Latin and other spaced scripts match as whole words, CJK anywhere; case is ignored.
    """

    name: str = Field(min_length=1)
    """Name of the list in the report."""

    path: str = Field(min_length=1, json_schema_extra=UNKEYED)
    """UTF-8 text; empty lines and lines that begin with # are passed over. Not keyed: the
    file's digest is."""

    min_count: int = Field(1, ge=1)
    """Occurrences at which a document is dropped."""

    min_density: float = Field(0.0, ge=0)
    """Occurrences a thousand words (a CJK character is a word) that it must reach as well."""


class SafetySettings(Settings):
    """[corpus.safety]: what must not be learned, and personal data."""

    word_lists: tuple[WordListSettings, ...] = ()
    """Word lists; a document that reaches the limits of one is dropped (`word_list`)."""

    url_lists: tuple[str, ...] = Field((), json_schema_extra=UNKEYED)
    """Files of hosts or URLs without scheme, one a line: ``bad.example`` is that host and those
    below it, ``bad.example/page`` the paths that begin so. A document that has one is dropped
    (`url_list`). Not keyed: the files' digests are."""

    patterns: dict[str, str] = Field(default_factory=dict)
    """Name -> regular expression (Python's `re`); a document that has a match is dropped
    (`pattern:NAME`)."""

    classifier: str | None = Field(None, min_length=1, json_schema_extra=UNKEYED)
    """Directory of a scorer trained with safe text as good, unsafe as bad. Not keyed: the
    files' digests are."""

    min_safe: float = Field(0.5, ge=0, le=1)
    """Documents whose mean score by the classifier, weighted by characters, is lower are dropped
    (`unsafe`)."""

    personal: Literal["mask", "drop", "keep"] = "mask"
    """Replace personal data, drop documents that have some (`personal_email`, ...), or neither."""

    kinds: tuple[PersonalKind, ...] = Field(get_args(PersonalKind), min_length=1)
    """What counts as personal data. In code (lang ``code``) only e-mail addresses and secret
    keys are looked for: its other numbers are literals."""

    mask: str = Field("[{KIND}]", min_length=1)
    """What replaces personal data: {KIND} is EMAIL, PHONE, ID_CARD, SSN, IP, BANK_CARD or KEY,
    {kind} the same in small letters."""

    @field_validator("patterns")
    @classmethod
    def _patterns_compile(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            try:
                empty = re.compile(pattern).search("") is not None
            except re.error as error:
                raise ValueError(f"pattern {name!r} is no regular expression: {error}") from None
            if empty:
                raise ValueError(f"pattern {name!r} matches any text")
        return patterns

    @field_validator("mask")
    @classmethod
    def _mask_formats(cls, mask: str) -> str:
        try:
            mask.format(KIND="EMAIL", kind="email")
        except (KeyError, ValueError, IndexError, AttributeError):
            raise ValueError("mask may hold {KIND} or {kind} and no other braces") from None
        return mask

    @field_validator("word_lists")
    @classmethod
    def _distinct_lists(cls, lists: tuple[WordListSettings, ...]) -> tuple[WordListSettings, ...]:
        names = [each.name for each in lists]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two word lists are named {twice[0]!r}")
        return lists


class BenchmarkSettings(Settings):
    """[[corpus.decontaminate.benchmarks]]: one benchmark's files, and where its questions are."""

    name: str = Field(min_length=1)
    """Name of the benchmark in counts and details."""

    path: str = Field(min_length=1, json_schema_extra=UNKEYED)
    """A file or a glob (** for folders at any depth): .csv, .json, .jsonl (also .gz, .zst) or
    .parquet. Not keyed: the files' digests are."""

    fields: tuple[str, ...] = Field(min_length=1)
    """Columns or keys whose text must not be trained on, each compared on its own;
    "options.A" reaches into an object. Every row needs them; null and empty are passed over."""

    rows: str | None = None
    """Key of the list of rows, where a .json file holds an object."""


class DecontaminateSettings(Settings):
    """[corpus.decontaminate]: text of benchmarks.

    A document matches where it holds `ngram` words of a benchmark's field in a row (GPT-3, Brown
    et al. 2020, appendix C), whatever the case, white space and punctuation; or a whole field
    that is shorter.
    """

    benchmarks: tuple[BenchmarkSettings, ...] = ()
    """Benchmarks in files."""

    tasks: tuple[str, ...] = ()
    """Tasks or groups of lm-eval by name: the questions of their test and validation sets."""

    task_path: str | None = Field(None, json_schema_extra=UNKEYED)
    """A folder of further lm-eval tasks (YAML files). Not keyed: the questions' digests are."""

    action: Literal["drop", "cut", "report"] = "drop"
    """Drop the document, cut the sentences at and around a match, or only list the document."""

    ngram: int = Field(13, ge=5, le=64)
    """Words in a row that are evidence (GPT-3: 13)."""

    cjk_ngram: int = Field(20, ge=5, le=64)
    """Units in a row where more than half of the first `ngram` are CJK characters, each of which
    is one: 13 English words are about 20 Chinese characters in translation."""

    min_words: int = Field(8, ge=1)
    """Fields of fewer words cannot be found (GPT-3: 8); between this and `ngram`, as a whole."""

    min_cjk: int = Field(13, ge=1)
    """The same for fields that are mostly CJK characters."""

    margin: int = Field(200, ge=0)
    """Characters on either side of a match (GPT-3: 200): every sentence they touch is cut."""

    common: int | None = Field(None, ge=1)
    """Matches in more documents than this are no evidence but common phrases (GPT-3: 10); all are
    evidence if none."""

    listed: int = Field(100, ge=0)
    """Documents that `contamination.jsonl` lists of each benchmark text, those that come first;
    the rest are counted, as `not_listed` in the funnel's facts."""

    @model_validator(mode="after")
    def _something_to_find(self) -> Self:
        if not self.benchmarks and not self.tasks:
            raise ValueError("decontaminate needs benchmarks or tasks to look for")
        names = [benchmark.name for benchmark in self.benchmarks] + list(self.tasks)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two benchmarks are named {twice[0]!r}")
        if self.min_words > self.ngram or self.min_cjk > self.cjk_ngram:
            raise ValueError("min_words and min_cjk may not exceed ngram and cjk_ngram")
        return self


class ClustersSettings(EmbeddingSettings):
    """[corpus.clusters]: topics (Baichuan 2, section 2.1), as the column `cluster`."""

    clusters: int = Field(32, ge=2, le=1000)
    """At most so many topics; fewer where there are not so many different documents."""

    sample: int = Field(20_000, ge=2)
    """Topics are found in so many documents, those with the smallest hash of (seed, id)."""

    characters: int = Field(2000, ge=8)
    """Unicode characters of a document that are looked at, in eight spans over its length."""

    vocabulary: int = Field(50_000, ge=2)
    """Words and pairs of CJK characters that are looked at: those in the most documents of the
    sample, of the ones in two or more and in at most half of it."""

    dimensions: int = Field(64, ge=1)
    """Dimensions of latent semantic analysis, in which the sample is clustered by k-means."""

    seed: int = Field(0, ge=0)
    """Seeds the sample, the decomposition and the first centres."""


class WeightsSettings(Settings):
    """[corpus.weights]: how often text is drawn, by source, language, quality and topic.

    A factor multiplies what a text has by its size: 2 is drawn twice as often as 1, 0 never,
    and text that no key names has factor 1. Factors of different keys multiply. A share is of
    all that is drawn, whatever the sizes, and is applied after the factors.
    """

    sources: dict[str, float] = Field(default_factory=dict)
    """Factor of each source, such as 2 for text of trusted origin (Baichuan 2, section 4.1)."""

    languages: dict[str, float] = Field(default_factory=dict)
    """Factor of each language as the sources state it; "und" is text of which none is stated."""

    quality: tuple[tuple[float, float], ...] = ()
    """Bands as [lowest score, factor], rising from score 0: `[[0, 0.5], [0.5, 1], [0.8, 2]]`.
    Text without a score has factor 1. Needs [corpus.quality]."""

    clusters: dict[str, float] = Field(default_factory=dict)
    """Factor of each cluster, by number. Needs [corpus.clusters]."""

    cluster_temperature: float = Field(1.0, ge=0, le=1)
    """Clusters are drawn in proportion to their size to this power: 1 as they are, 0 all alike,
    as languages in XLM (Conneau and Lample 2019, section 3.1)."""

    source_shares: dict[str, float] = Field(default_factory=dict)
    """Share of each source, in [0, 1]; the others divide what is left of 1."""

    language_shares: dict[str, float] = Field(default_factory=dict)
    """Share of each language, likewise. Not together with `source_shares`."""

    min_stratum_bytes: int = Field(1 << 20, ge=0)
    """Smaller strata of a source (UTF-8 bytes) are joined into one, SOURCE.rest: a stratum must
    hold whole samples and, as a rule, held-out text."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        factors = {"sources": self.sources, "languages": self.languages, "clusters": self.clusters}
        for key, table in factors.items():
            if any(factor < 0 for factor in table.values()):
                raise ValueError(f"{key}: a factor cannot be negative")
        if not all(number.isdecimal() for number in self.clusters):
            raise ValueError("clusters are named by number, from 0")
        self._check_bands()
        self._check_shares()
        return self

    def _check_bands(self) -> None:
        lowest = [score for score, _ in self.quality]
        if lowest and lowest[0] != 0:
            raise ValueError("quality: the first band begins at score 0")
        if any(low >= high for low, high in pairwise(lowest)):
            raise ValueError("quality: the bands' lowest scores must rise")
        if any(factor < 0 for _, factor in self.quality):
            raise ValueError("quality: a factor cannot be negative")

    def _check_shares(self) -> None:
        if self.source_shares and self.language_shares:
            raise ValueError("give source_shares or language_shares: each fixes all shares")
        for shares in (self.source_shares, self.language_shares):
            if any(share < 0 for share in shares.values()):
                raise ValueError("a share cannot be negative")
            if sum(Fraction(str(share)) for share in shares.values()) > 1:
                raise ValueError("the shares add up to more than 1")

    @property
    def by_language(self) -> bool:
        """Whether languages of a source are strata of their own."""
        return bool(self.languages or self.language_shares)

    @property
    def by_cluster(self) -> bool:
        """Whether clusters are: the stage needs the column `cluster`."""
        return bool(self.clusters) or self.cluster_temperature != 1
