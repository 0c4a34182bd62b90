"""Sentence-wise quality: score every sentence, cut those with low scores, drop bad documents.

After Baichuan 2, section 2.1, whose funnel has "sentence-wise quality filtering" and does not say
how the scores are computed. Here they come from a trained model
(`bc2.data.prep.text.sentence_scorer`) or, by default, from rules
(`bc2.data.prep.text.rule_scorer`). The scores are stored as columns, for reports and mixtures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bc2.data.prep.settings import QualitySettings
from bc2.data.prep.stages.base import Outcome, PrepStage, RemovedRow, removed
from bc2.data.prep.text.rule_scorer import RuleScorer
from bc2.data.prep.text.sentence_scorer import load_scorer, scorer_digests
from bc2.data.prep.text.sentences import cut_sentences, sentences_of, split_paragraphs

#: How the settings name the language of documents whose source states none.
UNKNOWN = "unknown"

#: The columns that the stage appends.
COLUMNS = pa.schema(
    [
        pa.field("quality", pa.float32()),  # mean of the text's sentences
        pa.field("paragraph_scores", pa.list_(pa.float32())),  # one for each split_paragraphs()
        pa.field("sentence_scores", pa.list_(pa.float32())),  # one for each split_sentences()
    ]
)

#: The beginning or end of a fenced block of code or mathematics in Markdown.
_FENCE = re.compile(r"^[ \t]*(?:```|~~~|\$\$)|\$\$[ \t]*$", re.MULTILINE)

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
    per_paragraph: Int64
    """[paragraphs] number of sentences in each."""
    per_text: Int64
    """[texts] number of paragraphs in each."""
    texts: Int64
    """[texts] number of sentences in each."""


def _split(texts: Sequence[str]) -> _Pieces:
    sentences: list[str] = []
    per_paragraph: list[int] = []
    per_text: list[int] = []
    whole: list[int] = []
    for text in texts:
        before = len(sentences)
        paragraphs = split_paragraphs(text)
        for paragraph in paragraphs:
            pieces = sentences_of(paragraph)
            sentences += pieces
            per_paragraph.append(len(pieces))
        per_text.append(len(paragraphs))
        whole.append(len(sentences) - before)
    counts = (np.array(each, dtype=np.int64) for each in (per_paragraph, per_text, whole))
    return _Pieces(sentences, *counts)


class _Scored(NamedTuple):
    """A text and its scores; means are weighted by characters, white space included."""

    text: str
    pieces: list[str]
    """The sentences of the text."""
    lengths: Int64
    """[sentences] characters of each."""
    sentences: Float32
    """[sentences] scores."""
    paragraphs: Float32
    """[paragraphs] mean scores."""
    mean: float
    """The mean score of the text."""


def _means(scores: Float32, lengths: Int64, groups: Int64) -> Float32:
    """Mean score of each group, weighted by `lengths`: [groups]; 0 for an empty group.

    Args:
        scores, lengths: [sentences].
        groups: [groups] number of sentences in each group, which follow one another.
    """
    owners = np.repeat(np.arange(len(groups)), groups)
    totals = np.bincount(owners, weights=scores * lengths, minlength=len(groups))
    sizes = np.bincount(owners, weights=lengths, minlength=len(groups))
    means: Float32 = (totals / np.maximum(sizes, 1)).astype(np.float32)
    return means


class QualityStage(PrepStage):
    """Scores sentences, cuts low ones and drops documents; means are weighted by characters."""

    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 1
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
        rows = [i for i, lang in enumerate(langs) if (lang or UNKNOWN) in self.settings.languages]
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

    def _score(self, texts: Sequence[str]) -> list[_Scored]:
        pieces = _split(texts)
        scores = self._scorer.score(pieces.sentences)
        lengths = np.array([len(piece) for piece in pieces.sentences], dtype=np.int64)
        paragraphs = _means(scores, lengths, pieces.per_paragraph)
        means = _means(scores, lengths, pieces.texts).tolist()
        last = np.cumsum(pieces.texts).tolist()
        ends = np.cumsum(pieces.per_text).tolist()
        scored = []
        for at, text in enumerate(texts):
            own = slice(last[at - 1] if at else 0, last[at])
            within = paragraphs[ends[at - 1] if at else 0 : ends[at]]
            scored.append(
                _Scored(text, pieces.sentences[own], lengths[own], scores[own], within, means[at])
            )
        return scored

    def _decide(self, scored: _Scored) -> _Decision:
        """Drop the document, cut sentences out of it, or leave it unchanged."""
        settings, text = self.settings, scored.text
        fenced = (
            _fenced(scored.pieces) if _FENCE.search(text) else np.zeros(len(scored.pieces), bool)
        )
        lengths = np.where(fenced, 0, scored.lengths)
        judged = int(lengths.sum())
        mean = float((scored.sentences * lengths).sum() / judged) if judged else 1.0
        if mean < settings.min_document:
            return _drop(text, f"mean {mean:.3f}")
        low = scored.sentences < np.float32(settings.min_sentence)
        for i in np.flatnonzero(low):
            low[i] = not fenced[i] and _letters(scored.pieces[i]) >= settings.min_letters
        if not low.any():
            return _Decision(text, None)
        lost = int(scored.lengths[low].sum())
        left = cut_sentences(text, (~low).tolist())
        if lost > settings.max_cut * len(text) or not left.strip():
            return _drop(text, f"low sentences {lost / len(text):.3f}")
        worst = int(np.argmin(np.where(low, scored.sentences, 2)))
        detail = f"{scored.sentences[worst]:.3f} {scored.pieces[worst].strip()}"
        size = len(text.encode()) - len(left.encode())
        return _Decision(left, ("low_sentence", size, False, detail))


def _fenced(pieces: Sequence[str]) -> npt.NDArray[np.bool_]:
    """[sentences] which are in a fenced block, fences included; a block must be closed."""
    flags = np.zeros(len(pieces), dtype=bool)
    inside, first = None, 0
    for at, piece in enumerate(pieces):
        for fence in _fences(piece):
            if inside is None:
                inside, first = fence, at
            elif inside == fence:
                flags[first : at + 1] = True
                inside = None
    return flags


def _fences(piece: str) -> list[str]:
    """The fences in a sentence, in order."""
    if "```" not in piece and "~~~" not in piece and "$$" not in piece:
        return []
    return [match.group().strip() for match in _FENCE.finditer(piece)]


def _letters(sentence: str) -> int:
    """The number of letters; a CJK character counts as 3."""
    return sum(3 if c >= "\u2e80" else 1 for c in sentence if c.isalpha())


class _Decision(NamedTuple):
    """What happens to a document."""

    text: str | None
    """The text that is left; None if the document is dropped."""
    why: tuple[str, int, bool, str] | None
    """Reason, bytes, whole and detail of what is removed; None if nothing is."""


def _drop(text: str, detail: str) -> _Decision:
    return _Decision(None, ("low_quality", len(text.encode()), True, detail))


def _with_text(table: pa.Table, texts: list[str]) -> pa.Table:
    place = table.schema.get_field_index("text")
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(texts, field.type))


def _columns(scored: Sequence[_Scored | None]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """The columns of `COLUMNS`, null for documents without scores."""
    return (
        pa.array([each and each.mean for each in scored], pa.float32()),
        _lists([each and each.paragraphs for each in scored]),
        _lists([each and each.sentences for each in scored]),
    )


def _lists(values: Sequence[Float32 | None]) -> pa.Array:
    empty = np.empty(0, dtype=np.float32)
    arrays = [empty if each is None else each for each in values]
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    missing = pa.array([each is None for each in values], pa.bool_())
    flat = pa.array(np.concatenate([empty, *arrays]), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=missing)
