"""Sentence-wise quality: score every sentence, cut those with low scores, drop bad documents.

After Baichuan 2, section 2.1, whose funnel has "sentence-wise quality filtering" and does not say
how the scores are computed. Here they come from a trained model
(`bc2.data.prep.text.sentence_scorer`) or, by default, from rules
(`bc2.data.prep.text.rule_scorer`). The scores are stored as columns, for reports and mixtures.

What is scored is prose: blocks of code, tables, headings and addresses have no score and no weight,
and of a sentence only what a reader reads counts (`bc2.data.prep.text.sentences`). A piece with a
low score that is code without any markup (`bc2.data.prep.text.markup.unmarked_code`) has no score
either. Means are weighted by UTF-8 bytes of prose, of which an ideograph has about as many as it
has meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bc2.data.language_tags import is_code, named_by
from bc2.data.prep.settings import QualitySettings
from bc2.data.prep.stages.base import Outcome, PrepStage, RemovedRow, removed
from bc2.data.prep.text.markup.unmarked_code import is_unmarked_code
from bc2.data.prep.text.rule_scorer import RuleScorer
from bc2.data.prep.text.sentence_scorer import load_scorer, scorer_digests
from bc2.data.prep.text.sentences import cut_sentences, divide

#: The columns that the stage appends.
COLUMNS = pa.schema(
    [
        # The mean of the text's sentences; null without prose.
        pa.field("quality", pa.float32()),
        # One for each split_paragraphs() and split_sentences(); null for a piece without prose.
        pa.field("paragraph_scores", pa.list_(pa.float32())),
        pa.field("sentence_scores", pa.list_(pa.float32())),
    ]
)

#: A text that has a larger share of bytes in unmarked code is no prose with examples.
_MOST_CODE = 0.75

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class SentenceScorer(Protocol):
    """Scores sentences, each independently of the others."""

    def score(self, sentences: Sequence[str]) -> Float32:
        """The score of each sentence, 0 (bad) to 1 (good): [sentences]."""
        ...


class _Pieces(NamedTuple):
    """The sentences of several texts, one text after the other."""

    sentences: list[str]
    prose: list[str]
    """What is prose in each."""
    per_paragraph: Int64
    """[paragraphs] number of sentences in each."""
    per_text: Int64
    """[texts] number of paragraphs in each."""
    texts: Int64
    """[texts] number of sentences in each."""


def _split(texts: Sequence[str]) -> _Pieces:
    sentences: list[str] = []
    prose: list[str] = []
    per_paragraph: list[int] = []
    per_text: list[int] = []
    whole: list[int] = []
    for text in texts:
        before = len(sentences)
        paragraphs = divide(text)
        for paragraph in paragraphs:
            sentences += paragraph.sentences
            prose += paragraph.prose
            per_paragraph.append(len(paragraph.sentences))
        per_text.append(len(paragraphs))
        whole.append(len(sentences) - before)
    counts = (np.array(each, dtype=np.int64) for each in (per_paragraph, per_text, whole))
    return _Pieces(sentences, prose, *counts)


class _Scored(NamedTuple):
    """A text and its scores, NaN where there is no prose."""

    text: str
    pieces: list[str]
    """The sentences of the text."""
    prose: list[str]
    """What is prose in each."""
    weights: Int64
    """[sentences] UTF-8 bytes of the prose of each; 0 without a score."""
    sentences: Float32
    """[sentences] scores."""
    paragraphs: Float32
    """[paragraphs] mean scores."""
    mean: float
    """The mean score of the text."""

    def starts(self, piece: int) -> int:
        """The character of the text at which a piece begins."""
        return sum(map(len, self.pieces[:piece]))


def _means(scores: Float32, weights: Int64, groups: Int64) -> Float32:
    """Mean score of each group: [groups]; NaN for a group without weight.

    Args:
        scores, weights: [sentences].
        groups: [groups] number of sentences in each group, which follow one another.
    """
    owners = np.repeat(np.arange(len(groups)), groups)
    products = np.where(weights > 0, scores, 0) * weights
    totals = np.bincount(owners, weights=products, minlength=len(groups))
    sizes = np.bincount(owners, weights=weights, minlength=len(groups))
    means: Float32 = np.where(sizes > 0, totals / np.maximum(sizes, 1), np.nan).astype(np.float32)
    return means


class QualityStage(PrepStage):
    """Scores the prose of sentences, cuts low ones and drops documents."""

    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 2
    reasons: ClassVar[tuple[str, ...]] = ("low_sentence", "low_quality")

    def __init__(self, settings: QualitySettings):
        self.settings = settings

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings}  # a worker loads the model itself

    def check(self) -> None:
        """Load the scorer.

        Raises:
            DataError: there is no scorer at the path, or another version of bc2 wrote it.
            IntegrityError: its weights are not those that were saved.
        """
        _ = self._scorer

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of each file of the scorer, by name; empty if rules score."""
        if self.settings.scorer == "rules":
            return {}
        return scorer_digests(Path(self.settings.scorer))

    @cached_property
    def _scorer(self) -> SentenceScorer:
        if self.settings.scorer == "rules":
            return RuleScorer()
        return load_scorer(Path(self.settings.scorer))

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Score one part, cut sentences and drop documents.

        Documents in languages that are not scored stay as they are, with null scores.
        """
        langs = table["lang"].to_pylist()
        rows = [i for i, lang in enumerate(langs) if self._scores(lang)]
        texts: list[str] = table["text"].to_pylist()
        before = self._score([texts[i] for i in rows])
        decisions = dict(zip(rows, (self._decide(each) for each in before), strict=True))
        positions = table["pos"].to_pylist()
        gone = [RemovedRow(positions[i], *it.why) for i, it in decisions.items() if it.why]
        # A text that was cut is split again: where a sentence ends depends on its neighbours.
        cut = [i for i, it in decisions.items() if it.why and it.text is not None]
        again = self._score([decisions[i].text or "" for i in cut])
        scored = dict(zip(rows, before, strict=True)) | dict(zip(cut, again, strict=True))
        kept = [i not in decisions or decisions[i].text is not None for i in range(len(texts))]
        table = _with_text(
            table, [scored[i].text if i in scored else texts[i] for i in range(len(texts))]
        )
        columns = _columns([scored.get(i) for i in range(len(texts))])
        for field, column in zip(COLUMNS, columns, strict=True):
            table = table.append_column(field, column)
        return Outcome(table.filter(pa.array(kept, pa.bool_())), removed(gone))

    def passes_over(self, lang: str | None) -> str | None:
        known = is_code(lang) or self._scores(lang)
        return None if known else "gives it no scores (corpus.quality.languages)"

    def _scores(self, lang: str | None) -> bool:
        return named_by(self.settings.languages, lang)

    def _score(self, texts: Sequence[str]) -> list[_Scored]:
        pieces = _split(texts)
        has_prose = [any(map(str.isalnum, piece)) for piece in pieces.prose]
        scores = np.full(len(has_prose), np.nan, np.float32)
        scores[has_prose] = self._scorer.score([*compress(pieces.prose, has_prose)])
        weights = np.array([len(piece.encode()) for piece in pieces.prose], np.int64) * has_prose
        code = self._unmarked_code(scores, weights, pieces)
        weights[code], scores[code] = 0, np.nan
        paragraphs = _means(scores, weights, pieces.per_paragraph)
        means = _means(scores, weights, pieces.texts).tolist()
        last = np.cumsum(pieces.texts).tolist()
        ends = np.cumsum(pieces.per_text).tolist()
        scored = []
        for at, text in enumerate(texts):
            own = slice(last[at - 1] if at else 0, last[at])
            within = paragraphs[ends[at - 1] if at else 0 : ends[at]]
            about = pieces.sentences[own], pieces.prose[own], weights[own], scores[own]
            scored.append(_Scored(text, *about, within, means[at]))
        return scored

    def _unmarked_code(self, scores: Float32, weights: Int64, pieces: _Pieces) -> Int64:
        """The pieces with low scores that are code: [code].

        Not in texts that have little else: those are judged as they are.
        """
        low = np.flatnonzero(scores < self.settings.min_document)
        code = [at for at in low.tolist() if is_unmarked_code(pieces.prose[at])]
        owners = np.repeat(np.arange(len(pieces.texts)), pieces.texts)
        of_code = np.zeros(len(pieces.texts), np.int64)
        np.add.at(of_code, owners[code], weights[code])
        whole = np.bincount(owners, weights=weights, minlength=len(pieces.texts))
        has_prose = of_code <= _MOST_CODE * whole
        return np.array([at for at in code if has_prose[owners[at]]], np.int64)

    def _decide(self, scored: _Scored) -> _Decision:
        """Drop the document, cut sentences out of it, or leave it unchanged."""
        settings, text = self.settings, scored.text
        if scored.mean < settings.min_document:
            return _drop(scored, f"mean {scored.mean:.3f}")
        low = scored.sentences < np.float32(settings.min_sentence)
        for i in np.flatnonzero(low):
            low[i] = _letters(scored.prose[i]) >= settings.min_letters
        if not low.any():
            return _Decision(text, None)
        lost = int(scored.weights[low].sum()) / int(scored.weights.sum())
        left = cut_sentences(text, (~low).tolist())
        if lost > settings.max_cut or not left.strip():
            return _drop(scored, f"low sentences {lost:.3f}")
        worst = int(np.argmin(np.where(low, scored.sentences, 2)))
        detail = f"{scored.sentences[worst]:.3f} {scored.pieces[worst].strip()}"
        size = len(text.encode()) - len(left.encode())
        return _Decision(left, ("low_sentence", size, False, detail, scored.starts(worst)))


def _letters(sentence: str) -> int:
    """The number of letters; a CJK character counts as 3."""
    return sum(3 if c >= "\u2e80" else 1 for c in sentence if c.isalpha())


class _Decision(NamedTuple):
    """What happens to a document."""

    text: str | None
    """The text that is left; None if the document is dropped."""
    why: tuple[str, int, bool, str, int] | None
    """Reason, bytes, whole, detail and place of what is removed; None if nothing is."""


def _drop(scored: _Scored, detail: str) -> _Decision:
    """The document goes; the place is that of its worst sentence."""
    worst = int(np.nanargmin(scored.sentences))
    size = len(scored.text.encode())
    return _Decision(None, ("low_quality", size, True, detail, scored.starts(worst)))


def _with_text(table: pa.Table, texts: list[str]) -> pa.Table:
    place = table.schema.get_field_index("text")
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(texts, field.type))


def _columns(scored: Sequence[_Scored | None]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """The columns of `COLUMNS`, null for documents without scores."""
    return (
        pa.array([each and each.mean for each in scored], pa.float32(), from_pandas=True),
        _lists([each and each.paragraphs for each in scored]),
        _lists([each and each.sentences for each in scored]),
    )


def _lists(values: Sequence[Float32 | None]) -> pa.Array:
    empty = np.empty(0, dtype=np.float32)
    arrays = [empty if each is None else each for each in values]
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    missing = pa.array([each is None for each in values], pa.bool_())
    flat = pa.array(np.concatenate([empty, *arrays]), pa.float32(), from_pandas=True)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=missing)
