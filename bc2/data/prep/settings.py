"""Settings of the funnel's stages: the tables under [corpus]. A stage without a table is off."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from bc2.recipe import UNKEYED, Settings

#: Kinds of personal data that `bc2.data.prep.text.personal_data` finds.
PersonalKind = Literal["email", "phone", "id_card", "ssn", "ip", "bank_card", "key"]


#: Text, doubled braces, and the kind with a format of fewer than a thousand characters.
_MASK = re.compile(
    r"(?:[^{}]|\{\{|\}\}|\{(?:KIND|kind)(?:![rsa])?(?::[^{}0-9]*[0-9]{0,3}[^{}0-9]*)?\})*"
)


class NormaliseSettings(Settings):
    """[corpus.normalise]: line ends, control characters, white space.

    In every case all line ends (CRLF, CR, VT, FF, NEL, U+2028, U+2029, FS, GS, RS) become LF, the
    unit separator becomes a space, and the other control characters but tab, and U+FEFF, are
    removed. A document that then has nothing but white space is dropped (`empty`).
    """

    nfc: bool = False
    """Convert to Unicode normalisation form C. Off by default, because it also replaces the
    compatibility ideographs of old books by other characters."""

    blank_lines: int | Literal[False] = Field(False, ge=0)
    """Keep at most so many consecutive blank lines; ``false`` keeps all."""

    strip_lines: bool = False
    """Remove white space at the ends of lines."""


class QualitySettings(Settings):
    """[corpus.quality]: score the prose of every sentence, and cut sentences with low scores."""

    scorer: str = Field("rules", min_length=1, json_schema_extra=UNKEYED)
    """``rules`` for rules about a sentence's form (`bc2.data.prep.text.rule_scorer`), or the
    directory of a scorer trained by ``bc2 data train-quality``. The corpus's key has the digests
    of the files instead of the path."""

    languages: tuple[str, ...] = Field(("en", "zh", "unknown"), min_length=1)
    """Languages that are scored, by the beginning of the tag; ``unknown`` stands for documents
    whose source states none. Documents in other languages, and code, stay unchanged without
    scores."""

    min_sentence: float = Field(0.35, ge=0, le=1)
    """Sentences with a lower score are cut (`low_sentence`). Code, formulas, tables, headings and
    addresses have no score."""

    min_letters: int = Field(12, ge=0)
    """Sentences with fewer letters (a CJK character counts as 3) are not cut: numbers, dates,
    underlines of headings and single marks get low scores by themselves, but belong to the text."""

    min_document: float = Field(0.5, ge=0, le=1)
    """Documents with a lower mean score are dropped (`low_quality`). The mean is weighted by UTF-8
    bytes of prose, before anything is cut."""

    max_cut: float = Field(0.3, ge=0, le=1)
    """Documents that would lose a larger share of the bytes of their prose by cuts are dropped
    (`low_quality`)."""


class PassagesSettings(Settings):
    """[corpus.passages]: cut paragraphs and sentences that occur earlier in the corpus.

    Blocks of code, tables and headings are no passages: a text without them is damaged. Two
    passages are equal if they differ only in case and in the kind and amount of white space.
    In code, they may differ only in white space at the ends of lines.
    """

    paragraphs: bool = True
    """Cut paragraphs that occur earlier in the corpus (CCNet, Wenzek et al. 2020, section 3.1)."""

    sentences: bool = True
    """Cut sentences that occur earlier in the corpus (C4 cuts spans of three sentences)."""

    paragraph_bytes: int = Field(120, ge=1)
    """Fewest UTF-8 bytes of a paragraph that is cut, in the form that is compared. A Chinese
    character has 3 bytes, so parallel Chinese and English text have about the same length."""

    sentence_bytes: int = Field(120, ge=1)
    """Fewest UTF-8 bytes of a sentence that is cut, in the form that is compared."""

    paragraph_repeats: int = Field(2, ge=2)
    """Cut only paragraphs that occur at least so many times in the corpus; the first stays."""

    sentence_repeats: int = Field(3, ge=2)
    """The same for sentences. More than 2 by default, because a cut sentence is missing in its
    context: good text repeats quotations and the standard clauses of statutes twice, while notices
    and menus occur everywhere."""

    code: bool = False
    """Also cut paragraphs (never sentences) in documents with lang "code". Off by default: a file
    without one of its functions no longer runs, so code is compared as whole files only."""

    max_lost: float = Field(0.7, gt=0, le=1)
    """Drop documents that would lose a larger share of their characters (`mostly_duplicate`)."""

    min_left: int = Field(60, ge=0)
    """Drop documents that would have fewer UTF-8 bytes after cuts (`mostly_duplicate`)."""


class NearSettings(Settings):
    """[corpus.near]: keep one of several documents with nearly the same words.

    The similarity of two documents is the Jaccard similarity of their sets of shingles. MinHash
    finds candidate pairs, with a recall that is a probability. The exact sets verify them, so the
    precision is 1.
    """

    threshold: float = Field(0.8, gt=0, le=1)
    """Lowest Jaccard similarity of near-duplicates (0.8: SlimPajama)."""

    recall: float = Field(0.97, gt=0, lt=1)
    """Lowest probability of finding a pair whose similarity is the threshold; it is higher for
    more similar pairs. It determines the bands: 16 bands of 7 hashes for 0.97 at 0.8."""

    hashes: int = Field(112, ge=1, le=1024)
    """MinHash values of a document (112: FineWeb, arXiv 2406.17557). With more, fewer candidates
    are below the threshold at the same recall, but the time grows in proportion."""

    shingle: int = Field(5, ge=1, le=32)
    """Words in a shingle (5: FineWeb). A CJK character is a word."""


class EmbeddingSettings(Settings):
    """How documents become vectors: part of the tables whose stages compare vectors."""

    model: str | None = Field(None, min_length=1)
    """A sentence-transformers model, by its name on the Hugging Face hub or by its folder. Its
    embeddings replace those computed from words. Needs `pip install sentence-transformers`. It
    works on one text at a time on one core, so that a document's result does not depend on its
    neighbours."""


class DenseSettings(EmbeddingSettings):
    """[corpus.dense]: keep one of several documents with nearly the same embedding.

    The similarity of two documents is the cosine of their vectors, which are stored as 8-bit
    integers. Sign bits find candidate pairs, with a recall that is a probability. Exact integer
    products verify them, so the precision for this cosine is 1.
    """

    threshold: float = Field(0.95, gt=0, le=1)
    """Lowest cosine of near-duplicates. The default is for embeddings of words: cosines of a
    `model` have another scale, and may be 0.8 for texts that are not similar."""

    recall: float = Field(0.97, gt=0, lt=1)
    """Lowest probability of finding a pair whose cosine is the threshold; it is higher for more
    similar pairs. It determines the bands: 44 bands of 23 bits for 0.97 at 0.95."""

    bits: int = Field(1024, ge=1, le=8192)
    """Sign bits of a document. With more, fewer candidates are below the threshold at the same
    recall, but time and memory grow in proportion."""

    dimensions: int = Field(256, ge=8, le=4096)
    """Dimensions (and bytes) of the embedding of words. The error of a cosine c is about
    (1 - c^2) / sqrt(dimensions), which is 0.006 at 0.95. A `model` has its own dimensions."""

    span: int = Field(1000, ge=16)
    """Characters that a `model` gets at a time. A document's vector is the mean of the vectors of
    its spans, weighted by their length. So all of a long document counts, although most models
    ignore text beyond 256 or 512 tokens."""

    min_words: int = Field(20, ge=1)
    """Documents with fewer words are not compared. A CJK character is a word."""

    seed: int = Field(0, ge=0, lt=2**64)
    """Seeds the projection of words and the hyperplanes of the sign bits."""


class WordListSettings(Settings):
    """[[corpus.safety.word_lists]]: a file with a word on each line, and limits for them.

    Words of scripts with spaces match as whole words only, CJK words anywhere; case is ignored.
    """

    name: str = Field(min_length=1)
    """Name of the list in the report."""

    path: str = Field(min_length=1, json_schema_extra=UNKEYED)
    """UTF-8 text file; empty lines and lines that begin with # are ignored. The corpus's key has
    the digest of the file instead of the path."""

    min_count: int = Field(1, ge=1)
    """Documents with at least so many occurrences of the words are dropped."""

    min_density: float = Field(0.0, ge=0)
    """To be dropped, a document must also have at least so many occurrences per thousand words. A
    CJK character is a word."""


class SafetySettings(Settings):
    """[corpus.safety]: text that a model must not learn, and personal data."""

    word_lists: tuple[WordListSettings, ...] = ()
    """Word lists; a document that reaches the limits of one is dropped (`word_list`)."""

    url_lists: tuple[str, ...] = Field((), json_schema_extra=UNKEYED)
    """Files with a host or a URL without scheme on each line. ``bad.example`` is that host with
    its subdomains, and ``bad.example/page`` every URL that begins with it. A document with one of
    them is dropped (`url_list`). The corpus's key has the digests of the files instead of their
    paths."""

    patterns: dict[str, str] = Field(default_factory=dict)
    """Name -> regular expression (Python's `re`); a document with a match is dropped
    (`pattern:NAME`). A pattern that starts again at each character of a run takes time by the
    square of a document's length: write possessive quantifiers (``a++``) for it."""

    classifier: str | None = Field(None, min_length=1, json_schema_extra=UNKEYED)
    """Directory of a scorer trained by ``bc2 data train-quality`` with safe text as good and unsafe
    text as bad. The corpus's key has the digests of the files instead of the path."""

    min_safe: float = Field(0.5, ge=0, le=1)
    """Documents whose mean score by the classifier, weighted by characters, is lower are dropped
    (`unsafe`)."""

    personal: Literal["mask", "drop", "keep"] = "mask"
    """Replace personal data by a mask, drop documents with it (`personal_email`, ...), or keep
    it."""

    kinds: tuple[PersonalKind, ...] = Field(get_args(PersonalKind), min_length=1)
    """What counts as personal data. In code (lang ``code``, ``code-python`` ...) only e-mail
    addresses and secret keys are searched for, because other numbers there are literals."""

    mask: str = Field("[{KIND}]", min_length=1)
    """The text that replaces personal data: {KIND} is EMAIL, PHONE, ID_CARD, SSN, IP, BANK_CARD or
    KEY, and {kind} the same in lower case."""

    @field_validator("patterns")
    @classmethod
    def _patterns_compile(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            try:
                empty = re.compile(pattern).search("") is not None
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"pattern {name!r} is no regular expression: {error}") from None
            if empty:
                raise ValueError(f"pattern {name!r} matches any text")
        return patterns

    @field_validator("mask")
    @classmethod
    def _mask_formats(cls, mask: str) -> str:
        message = "mask may hold {KIND} or {kind} and no other braces"
        if not _MASK.fullmatch(mask):
            raise ValueError(message)
        try:
            mask.format(KIND="EMAIL", kind="email")
        except ValueError:
            raise ValueError(message) from None
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
    """[[corpus.decontaminate.benchmarks]]: the files of a benchmark, and where its texts are."""

    name: str = Field(min_length=1)
    """Name of the benchmark in counts and details."""

    path: str = Field(min_length=1, json_schema_extra=UNKEYED)
    """A file or a glob (** for folders at any depth): .csv, .json, .jsonl (also .gz, .zst) or
    .parquet. The corpus's key has the digests of the files instead of the path."""

    fields: tuple[str, ...] = Field(min_length=1)
    """Columns or keys with text that must not be trained on; each field is a text of its own.
    "options.A" is the key A of the object "options". Every row must have the fields; null and
    empty values are skipped."""

    rows: str | None = None
    """Key of the list of rows, if a .json file holds an object."""


class DecontaminateSettings(Settings):
    """[corpus.decontaminate]: find documents with text of benchmarks.

    A document matches if it has `ngram` consecutive words of a benchmark's text (GPT-3, Brown et
    al. 2020, appendix C), or the whole text if that is shorter. Case, white space, punctuation and
    the way characters are written (ligatures, width, accents: NFKC) are ignored.
    """

    benchmarks: tuple[BenchmarkSettings, ...] = ()
    """Benchmarks in files."""

    tasks: tuple[str, ...] = ()
    """Names of lm-eval tasks or groups: the questions of their test and validation sets."""

    task_path: str | None = Field(None, json_schema_extra=UNKEYED)
    """A folder of further lm-eval tasks (YAML files). The corpus's key has the digests of the
    questions instead of the path."""

    action: Literal["drop", "cut", "report"] = "drop"
    """Drop documents with matches, cut the sentences at and around matches, or only list the
    documents."""

    ngram: int = Field(13, ge=5, le=64)
    """How many consecutive words are a match (GPT-3: 13)."""

    cjk_ngram: int = Field(20, ge=5, le=64)
    """The same if more than half of the first `ngram` words are CJK characters, each of which is a
    word: 13 English words are about 20 Chinese characters in translation."""

    min_words: int = Field(8, ge=1)
    """Texts with fewer words cannot be found (GPT-3: 8). A text with at least this many words, but
    fewer than `ngram`, is found as a whole."""

    min_cjk: int = Field(13, ge=1)
    """The same for texts of mostly CJK characters."""

    margin: int = Field(200, ge=0)
    """Characters on either side of a match (GPT-3: 200): `cut` removes every sentence within
    them."""

    common: int | None = Field(None, ge=1)
    """N-grams in more documents than this are common phrases and no matches (GPT-3: 10). Without
    it, all count."""

    listed: int = Field(100, ge=0)
    """How many documents `contamination.jsonl` lists for each benchmark text, in the order of the
    corpus. The others are counted as `not_listed` in the funnel's facts."""

    @model_validator(mode="after")
    def _something_to_find(self) -> Self:
        if not self.benchmarks and not self.tasks:
            raise ValueError("decontaminate needs benchmarks or tasks")
        names = [benchmark.name for benchmark in self.benchmarks] + list(self.tasks)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two benchmarks or tasks are named {twice[0]!r}")
        if self.min_words > self.ngram or self.min_cjk > self.cjk_ngram:
            raise ValueError("min_words and min_cjk may not exceed ngram and cjk_ngram")
        return self


class ClustersSettings(EmbeddingSettings):
    """[corpus.clusters]: topics, as the column `cluster` (Baichuan 2, section 2.1)."""

    clusters: int = Field(32, ge=2, le=1000)
    """The most clusters; there are fewer if there are fewer different documents."""

    sample: int = Field(20_000, ge=2)
    """Clusters are fitted to so many documents: those with the smallest hash of (seed, id)."""

    characters: int = Field(2000, ge=8)
    """Unicode characters of a document that count, in eight spans spread over its length."""

    vocabulary: int = Field(50_000, ge=2)
    """The most words and pairs of CJK characters that count. Of those that occur in at least two
    documents and in at most half of the sample, the ones in the most documents are taken."""

    dimensions: int = Field(64, ge=1)
    """Dimensions of the latent semantic analysis; k-means clusters the sample in this space."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seeds the sample, the decomposition and the first cluster centres."""


class WeightsSettings(Settings):
    """[corpus.weights]: how often text is drawn, by source, language, quality and topic.

    Without factors, text is drawn in proportion to its size. Text with factor 2 is drawn twice as
    often, text with factor 0 never. Text that no key names has factor 1, and factors of different
    keys are multiplied. A share is a part of everything that is drawn, whatever the sizes; shares
    are applied after factors.
    """

    sources: dict[str, float] = Field(default_factory=dict)
    """Factor of each source, such as 2 for text of trusted origin (Baichuan 2, section 4.1)."""

    languages: dict[str, float] = Field(default_factory=dict)
    """Factor of each language that the sources state, by the beginning of its tag: "zh" is zh-CN
    and zh-TW too, unless a longer key names them. "und" is text without a stated language."""

    quality: tuple[tuple[float, float], ...] = ()
    """Factors of bands of quality scores, as [lowest score, factor] in ascending order from score
    0: `[[0, 0.5], [0.5, 1], [0.8, 2]]`. Text without a score has factor 1. Needs
    [corpus.quality]."""

    clusters: dict[str, float] = Field(default_factory=dict)
    """Factor of each cluster, by its number. Needs [corpus.clusters]."""

    cluster_temperature: float = Field(1.0, ge=0, le=1)
    """Clusters are drawn in proportion to their size to this power, as languages in XLM (Conneau
    and Lample 2019, section 3.1). With 1 the sizes count fully; with 0 all clusters are drawn
    equally often. Below 1 it needs [corpus.clusters]."""

    source_shares: dict[str, float] = Field(default_factory=dict)
    """Share of each source, in [0, 1]; the sources without a share divide the rest of 1."""

    language_shares: dict[str, float] = Field(default_factory=dict)
    """Share of each language, in the same way. Not together with `source_shares`."""

    min_stratum_bytes: int = Field(1 << 20, ge=0)
    """Strata of a source with fewer UTF-8 bytes are joined into one stratum, SOURCE.rest, because
    a stratum needs text for whole samples and usually for held-out text."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        factors = {"sources": self.sources, "languages": self.languages, "clusters": self.clusters}
        for key, table in factors.items():
            if any(factor < 0 for factor in table.values()):
                raise ValueError(f"{key}: a factor cannot be negative")
        # No str.isdecimal(): it knows the digits of all scripts.
        if not all(re.fullmatch("[0-9]{1,4}", number) for number in self.clusters):
            raise ValueError("clusters: the keys must be numbers of clusters, from 0")
        if len(set(map(int, self.clusters))) < len(self.clusters):
            raise ValueError("clusters: two keys are the number of one cluster")
        self._check_bands()
        self._check_shares()
        return self

    def _check_bands(self) -> None:
        lowest = [score for score, _ in self.quality]
        if lowest and lowest[0] != 0:
            raise ValueError("quality: the first band must begin at score 0")
        if any(low >= high for low, high in pairwise(lowest)):
            raise ValueError("quality: the lowest scores of the bands must be in ascending order")
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
        """Whether the languages of a source are strata of their own."""
        return bool(self.languages or self.language_shares)

    @property
    def by_cluster(self) -> bool:
        """Whether clusters are strata of their own, which needs the column `cluster`."""
        return bool(self.clusters) or self.cluster_temperature != 1
