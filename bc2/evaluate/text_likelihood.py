"""How well a model predicts texts: nats a token, bits a byte, perplexity, by language.

Each token of a document is predicted once, in windows that overlap where a document is longer
than the model's context. The first token is predicted from what the tokenizer puts before texts,
else from the end-of-text token, as lm-eval does, so that the figures are of the whole text. The end
of the text after the last token is not predicted, since a text may be a part of a document.

A run's held-out loss counts otherwise: there the end of each document is predicted and its first
token is not, and windows do not overlap. A model that was trained so has never seen a text after
the end-of-text token; what the first tokens cost is therefore told apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from pydantic import Field

from bc2.data.documents import Document
from bc2.errors import DataError, RunFailed, UsageError
from bc2.evaluate.encoding import prefix_id
from bc2.generate.engine import InferenceEngine
from bc2.generate.requests import Score, ScoreRequest
from bc2.recipe import Settings
from bc2.tokenizer.boundaries import Boundaries
from bc2.tokenizer.tokenizer import Tokenizer

#: ``progress(documents, tokens)`` that have been measured.
ReportProgress = Callable[[int, int], None]

#: The language of a document that states none.
UNKNOWN = "unknown"

#: What a document's first token may be predicted from.
END_OF_TEXT, BEGINNING_OF_TEXT = "end of text", "beginning of text"

#: Characters of a document that are encoded at once, where its tokenizer can cut it.
_ENCODED_CHARACTERS = 1 << 18

#: Forward passes' worth of tokens that are given to the engine together.
_PASSES_AT_ONCE = 16


class TextSettings(Settings):
    """How texts are measured."""

    stride: int | None = Field(default=None, gt=0)
    """Tokens that a window predicts after the first one, in tokens; the rest of the window is
    context. Smaller is slower and gives tokens more context. None: half of the window."""

    limit: int | None = Field(default=None, gt=0)
    """The most documents that are read, empty ones included; None: all."""


def text_windows(
    ids: Iterable[int], window: int, stride: int, prefix_id: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Contexts and continuations by which each token is predicted once; lm-eval's rolling windows.

    The first predicts `window` tokens from `prefix_id` on, the others `stride` tokens each and
    the last what is left, all with as much context as the window holds. Tokens are taken from
    `ids` as they are needed.

    Args:
        window: tokens that the model reads at once.
        stride: from 1 to `window`.
    """
    coming = iter(ids)
    before = [prefix_id]
    count = window
    while new := list(itertools.islice(coming, count)):
        # The last token is predicted and not read.
        yield before[-(window - len(new) + 1) :], new
        before = [*before, *new][-window:]
        count = stride


@dataclass
class _Sums:
    """Sums over documents; products of two are for the standard errors."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    nats: float = 0.0
    first_nats: float = 0.0
    nats_nats: float = 0.0
    nats_tokens: float = 0.0
    tokens_tokens: int = 0
    nats_bytes: float = 0.0
    bytes_bytes: int = 0

    def add(self, nats: float, tokens: int, size: int, first_nats: float) -> None:
        self.documents += 1
        self.tokens += tokens
        self.bytes += size
        self.nats += nats
        self.first_nats += first_nats
        self.nats_nats += nats * nats
        self.nats_tokens += nats * tokens
        self.tokens_tokens += tokens * tokens
        self.nats_bytes += nats * size
        self.bytes_bytes += size * size

    def plus(self, other: _Sums) -> _Sums:
        names = [field.name for field in fields(self)]
        return _Sums(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def result(self) -> dict[str, Any]:
        per_token = self.nats / self.tokens
        per_byte = self.nats / self.bytes
        token_error = self._ratio_error(per_token, self.nats_tokens, self.tokens_tokens)
        byte_error = self._ratio_error(per_byte, self.nats_bytes, self.bytes_bytes)
        bit = math.log(2)
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "nats": self.nats,
            "nats_per_token": per_token,
            "nats_per_token_stderr": token_error and token_error / self.tokens,
            "bits_per_byte": per_byte / bit,
            "bits_per_byte_stderr": byte_error and byte_error / self.bytes / bit,
            "perplexity": _exp(per_token),
            "first_token_nats": self.first_nats / self.documents,
        }

    def _ratio_error(self, ratio: float, mixed: float, square: float) -> float | None:
        """Standard error of ``nats - ratio * size``, summed over documents; None for one alone."""
        if self.documents < 2:
            return None
        squares = self.nats_nats - 2 * ratio * mixed + ratio * ratio * square
        return math.sqrt(max(0.0, squares) * self.documents / (self.documents - 1))


def _exp(value: float) -> float | None:
    try:
        return math.exp(value)
    except OverflowError:
        return None


class TextLikelihood:
    """Sums over documents, by language. Its size does not grow with them.

    Attributes:
        documents: those that were counted.
        empty: documents without tokens, which are not among them.
    """

    def __init__(self) -> None:
        self._languages: dict[str, _Sums] = {}
        self.documents = 0
        self.empty = 0

    def add(
        self, language: str | None, nats: float, tokens: int, size: int, *, first_nats: float
    ) -> None:
        """Count a document.

        Args:
            language: as the document states it.
            nats: what all its tokens cost: minus their log-probability.
            size: bytes of its text in UTF-8.
            first_nats: what its first token costs, which is in `nats` too.
        """
        self._languages.setdefault(language or UNKNOWN, _Sums()).add(nats, tokens, size, first_nats)
        self.documents += 1

    def state(self) -> dict[str, Any]:
        """All of it, as JSON data for `merge`."""
        languages = {name: asdict(sums) for name, sums in self._languages.items()}
        return {"empty": self.empty, "languages": languages}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another one counted: its `state`."""
        self.empty += state["empty"]
        for name, counted in state["languages"].items():
            sums = _Sums(**counted)
            self._languages[name] = self._languages.get(name, _Sums()).plus(sums)
            self.documents += sums.documents

    def result(self) -> dict[str, Any]:
        """JSON data: ``total``, and ``languages`` by name, each with

        - ``documents``, ``tokens``, ``bytes`` (UTF-8), ``nats``: sums;
        - ``nats_per_token``, ``bits_per_byte`` (all nats over all bytes) and their standard
          errors as ``…_stderr``: ratios of sums whose documents are the samples; None for one;
        - ``perplexity`` of a token; None where no float holds it;
        - ``first_token_nats``: mean cost of documents' first tokens.

        Raises:
            DataError: there was no document.
        """
        if not self._languages:
            raise DataError(
                "there is no text to measure", todo="give files with documents that are not empty"
            )
        total = _Sums()
        for sums in self._languages.values():
            total = total.plus(sums)
        languages = {name: sums.result() for name, sums in sorted(self._languages.items())}
        return {"total": total.result(), "languages": languages}


@dataclass(frozen=True)
class TextScores:
    """What was measured, and how."""

    likelihood: TextLikelihood
    window: int
    """Tokens that the model reads at once."""
    stride: int
    """Tokens that each window of a document predicts after the first window."""
    first_token_from: str = END_OF_TEXT
    """What the first token of a document is predicted from: see `first_token_from`."""

    def as_json(self) -> dict[str, Any]:
        """`TextLikelihood.result`, and what it is the result of."""
        return {
            "window": self.window,
            "stride": self.stride,
            "first_token_from": self.first_token_from,
            "end_of_text_predicted": False,
            "empty_documents": self.likelihood.empty,
            **self.likelihood.result(),
        }


class _Piece(NamedTuple):
    """A window of a document."""

    number: int
    """That of the document."""
    document: Document
    request: ScoreRequest


def measure_text(
    engine: InferenceEngine,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    settings: TextSettings | None = None,
    progress: ReportProgress | None = None,
) -> TextScores:
    """The likelihood of documents, in memory that grows neither with their number nor length.

    Only the text of a document is held; if the tokenizer cannot cut texts
    (`bc2.tokenizer.boundaries`), its tokens too.

    Raises:
        DataError: no document has tokens, the tokenizer has no end-of-text token, or it has
            tokens that the model has not; and what reading `documents` raises.
        RunFailed: a log-probability is not finite.
        UsageError: the stride is larger than the model's window.
    """
    settings = settings or TextSettings()
    stride = stride_of(settings.stride, engine.runner.config.context_length)
    read = itertools.islice(documents, settings.limit)
    likelihood = measure_part(engine, tokenizer, read, stride, progress)
    likelihood.result()  # raises if there is none
    window = engine.runner.config.context_length
    return TextScores(likelihood, window, stride, first_token_from(tokenizer))


def first_token_from(tokenizer: Tokenizer) -> str:
    """What stands before a document, by its name: see `bc2.evaluate.encoding.prefix_id`."""
    return BEGINNING_OF_TEXT if tokenizer.begin_ids else END_OF_TEXT


def stride_of(wanted: int | None, window: int) -> int:
    """The stride of windows, tokens: half a window unless it is said.

    Raises:
        UsageError: it is larger than the window.
    """
    stride = wanted or max(1, window // 2)
    if stride > window:
        raise UsageError(
            f"a stride of {stride} tokens is larger than the model's window of {window}",
            todo=f"give a stride of {window} or less",
        )
    return stride


def measure_part(
    engine: InferenceEngine,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    stride: int,
    progress: ReportProgress | None = None,
) -> TextLikelihood:
    """As `measure_text`, of some documents, which may have no tokens."""
    likelihood = TextLikelihood()
    pieces = _pieces(tokenizer, documents, engine.runner.config.context_length, stride, likelihood)
    measured = 0
    for _, scored in itertools.groupby(_scored(engine, pieces), lambda pair: pair[0].number):
        costs = _Costs()
        for piece, score in scored:
            costs.add(score, piece.request.where)
            measured += len(score.log_probs)
            if progress is not None:
                progress(likelihood.documents, measured)
        size = len(piece.document.text.encode())
        likelihood.add(
            piece.document.lang, costs.nats, costs.tokens, size, first_nats=costs.first_nats
        )
    return likelihood


@dataclass
class _Costs:
    """What the tokens of one document cost so far, in nats."""

    nats: float = 0.0
    tokens: int = 0
    first_nats: float = 0.0

    def add(self, score: Score, where: str | None) -> None:
        nats = -math.fsum(score.log_probs)
        if not math.isfinite(nats):
            raise RunFailed(
                f"log-probabilities of this text sum to {-nats}",
                where=where,
                todo="take an earlier checkpoint",
            )
        if not self.tokens:
            self.first_nats = -score.log_probs[0]
        self.nats += nats
        self.tokens += len(score.log_probs)


def _pieces(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    window: int,
    stride: int,
    likelihood: TextLikelihood,
) -> Iterator[_Piece]:
    """The windows of all documents in order; those that have none are counted as empty."""
    if tokenizer.eos_id < 0 and not tokenizer.begin_ids:
        raise DataError("this tokenizer has no end-of-text piece to predict first tokens from")
    first = prefix_id(tokenizer)
    boundaries = Boundaries(tokenizer)
    for number, document in enumerate(documents):
        where = f"{document.origin_file}:{document.origin_row}"
        ids = document_ids(document.text, tokenizer, boundaries)
        none = True
        for context, continuation in text_windows(ids, window, stride, first):
            none = False
            yield _Piece(number, document, ScoreRequest(context, continuation, where))
        likelihood.empty += none


def document_ids(text: str, tokenizer: Tokenizer, boundaries: Boundaries) -> Iterator[int]:
    """`Tokenizer.encode` of a text, a part at a time where it can be cut."""
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > _ENCODED_CHARACTERS:
            cut = boundaries.last(text, start + _ENCODED_CHARACTERS)
            end = cut if cut > start else end
        yield from tokenizer.encode(text[start:end])
        start = end


def _scored(engine: InferenceEngine, pieces: Iterator[_Piece]) -> Iterator[tuple[_Piece, Score]]:
    """Each window with its score; as many are held as fill some forward passes."""
    group: list[_Piece] = []
    size = 0
    for piece in itertools.chain(pieces, [None]):
        if piece is not None:
            group.append(piece)
            size += len(piece.request.context) + len(piece.request.continuation)
        if group and (piece is None or size >= _PASSES_AT_ONCE * engine.config.step_tokens):
            # Windows have no beginning in common that would be worth a search.
            yield from zip(
                group, engine.score((one.request for one in group), share=False), strict=True
            )
            group, size = [], 0
